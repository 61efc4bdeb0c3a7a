// What the page adds where scripts run: the theme button, the figure under the pointer, the choice of a sandbox, and
// saving the records. Without scripts everything is still there to read.
"use strict";
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  const themes = ["auto", "light", "dark"];
  const button = byId("theme");
  const remembered = () => { try { return localStorage.getItem("lambda-harness-theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("lambda-harness-theme", theme); } catch { /* not allowed: fine */ } };
  const show = (theme) => {
    if (theme === "auto") { root.removeAttribute("data-theme"); } else { root.dataset.theme = theme; }
    button.querySelector("span").textContent = theme;
  };
  let theme = themes.includes(remembered()) ? remembered() : "auto";
  show(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    show(theme);
    remember(theme);
  });

  const tip = byId("tip");
  const told = (target) => target instanceof Element && target.closest(".chart [aria-roledescription][aria-label]");
  const isMark = (mark) => mark && !/axis|legend|title|group|container/.test(mark.getAttribute("aria-roledescription"));
  document.addEventListener("pointermove", (event) => {
    const mark = told(event.target);
    if (!isMark(mark)) { tip.hidden = true; return; }
    tip.textContent = mark.getAttribute("aria-label");
    tip.hidden = false;
    const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const y = event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18;
    tip.style.left = `${Math.max(8, x)}px`;
    tip.style.top = `${y}px`;
  });

  for (const control of document.querySelectorAll(".control")) { control.hidden = false; }
  const timelines = [...document.querySelectorAll(".timeline")];
  const choose = (index) => timelines.forEach((one, at) => { one.hidden = at !== index; });
  const select = byId("sandbox");
  if (select) {
    choose(0);
    select.addEventListener("change", () => choose(Number(select.value)));
  }

  const records = async () => {
    const element = byId("document");
    if (element.dataset.encoding === "json") { return new Blob([element.textContent], { type: "application/json" }); }
    const bytes = Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Blob([await new Response(plain).text()], { type: "application/json" });
  };
  byId("save").addEventListener("click", async () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await records());
    link.download = "run.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
})();
