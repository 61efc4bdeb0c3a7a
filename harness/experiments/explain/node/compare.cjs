// Compares two heap snapshots of one process: node compare.cjs BEFORE AFTER INVOCATIONS. Prints what the second has more,
// as JSON: constructors, and the retainers, which are the objects that were there before and hold what is new.
//
// The format is V8's: flat arrays of nodes and edges whose fields `snapshot.meta` names. An object keeps its id from one
// snapshot to the next, which tells what is new.
"use strict";

const { readFileSync } = require("node:fs");
const { basename } = require("node:path");

const MOST = 40;
// What the engine and the runtime keep for themselves: they are no retainers that a person could do something about.
const CONSTRUCTOR_OF = { closure: "(closure)", array: "(array)", code: "(code)", regexp: "(regexp)", symbol: "(symbol)",
  bigint: "(bigint)", number: "(number)", "object shape": "(object shape)", hidden: "(system)",
  "concatenated string": "(string)", "sliced string": "(string)", string: "(string)", synthetic: "(system)" };

function read(path) {
  const found = JSON.parse(readFileSync(path, "latin1"));
  const { node_fields, node_types, edge_fields, edge_types } = found.snapshot.meta;
  const field = (fields, name) => fields.indexOf(name);
  const heap = {
    nodes: found.nodes, edges: found.edges, strings: found.strings,
    size: node_fields.length, types: node_types[0],
    type: field(node_fields, "type"), name: field(node_fields, "name"), id: field(node_fields, "id"),
    self: field(node_fields, "self_size"), count: field(node_fields, "edge_count"),
    edgeSize: edge_fields.length, edgeTypes: edge_types[0],
    edgeType: field(edge_fields, "type"), edgeName: field(edge_fields, "name_or_index"), edgeTo: field(edge_fields, "to_node"),
  };
  heap.total = heap.nodes.length / heap.size;
  heap.firstEdge = new Uint32Array(heap.total + 1);
  for (let node = 0, edge = 0; node < heap.total; node++) {
    heap.firstEdge[node] = edge;
    edge += heap.nodes[node * heap.size + heap.count];
    heap.firstEdge[node + 1] = edge;
  }
  return heap;
}

const typeOf = (heap, node) => heap.types[heap.nodes[node * heap.size + heap.type]];
const nameOf = (heap, node) => heap.strings[heap.nodes[node * heap.size + heap.name]];
const idOf = (heap, node) => heap.nodes[node * heap.size + heap.id];
const sizeOf = (heap, node) => heap.nodes[node * heap.size + heap.self];

function constructorOf(heap, node) {
  const type = typeOf(heap, node);
  return CONSTRUCTOR_OF[type] || nameOf(heap, node) || `(${type})`;
}

function* edgesOf(heap, node) {
  for (let edge = heap.firstEdge[node]; edge < heap.firstEdge[node + 1]; edge++) {
    const at = edge * heap.edgeSize;
    const type = heap.edgeTypes[heap.edges[at + heap.edgeType]];
    const value = heap.edges[at + heap.edgeName];
    yield {
      type,
      name: type === "element" || type === "hidden" ? value : heap.strings[value],
      to: heap.edges[at + heap.edgeTo] / heap.size,
    };
  }
}

// For each node the one that holds it on a shortest way from the root, and by which edge. Weak edges hold nothing.
function holders(heap) {
  const parent = new Int32Array(heap.total).fill(-1);
  const via = new Array(heap.total);
  const queue = new Uint32Array(heap.total);
  let tail = 1;
  parent[0] = 0;
  for (let head = 0; head < tail; head++) {
    const node = queue[head];
    for (const edge of edgesOf(heap, node)) {
      if (edge.type === "weak" || parent[edge.to] !== -1) continue;
      // In these the key is weak, or the collector alone reads them.
      if (edge.type === "internal" && edge.name === "feedback_cell") continue;
      parent[edge.to] = node;
      via[edge.to] = edge;
      queue[tail++] = edge.to;
    }
  }
  return { parent, via, order: queue, reached: tail };
}

// The file whose functions close over a scope.
function scopeFiles(heap) {
  const files = new Map();
  for (let node = 0; node < heap.total; node++) {
    if (typeOf(heap, node) !== "closure") continue;
    let context = -1;
    let shared = -1;
    for (const edge of edgesOf(heap, node)) {
      if (edge.name === "context") context = edge.to;
      else if (edge.name === "shared") shared = edge.to;
    }
    if (context < 0 || shared < 0 || files.has(context)) continue;
    for (const edge of edgesOf(heap, shared)) {
      if (!String(edge.name).startsWith("script")) continue;
      for (const inner of edgesOf(heap, edge.to)) {
        if (inner.name === "name") files.set(context, nameOf(heap, inner.to));
      }
    }
  }
  return files;
}

const isScope = (heap, node) => nameOf(heap, node).startsWith("system / Context");
const isMeant = (edge) => (edge.type === "property" || edge.type === "context") && edge.name !== "__proto__";

// A name that a person would use: the variable or the properties by which an object is reached, and the file of its scope.
function describe(heap, tree, files, node) {
  const names = [];
  let where = null;
  for (let at = node; at !== 0 && names.length < 4; at = tree.parent[at]) {
    const edge = tree.via[at];
    if (isMeant(edge)) names.unshift(edge.name);
    if (isScope(heap, tree.parent[at])) {
      where = files.get(tree.parent[at]) || null;
      if (edge.type === "context") break;
    }
  }
  return { name: names.join("."), where };
}

const base = (where) => (where ? basename(where.replace(/^file:\/\//, "")).replace(/\.[cm]?js$/, "") : null);

function compare(beforePath, afterPath, invocations) {
  let before = read(beforePath);
  const known = new Set();
  const counted = new Map(); // constructor -> [count, bytes]
  const count = (name, sign, size) => {
    const entry = counted.get(name) || [0, 0];
    entry[0] += sign;
    entry[1] += sign * size;
    counted.set(name, entry);
  };
  for (let node = 0; node < before.total; node++) {
    known.add(idOf(before, node));
    count(constructorOf(before, node), -1, sizeOf(before, node));
  }
  before = null;

  const heap = read(afterPath);
  const tree = holders(heap);
  const files = scopeFiles(heap);
  const byHolder = new Map();
  // From the root outwards: a new node's holder is the old node above it, or the holder of the new one above it.
  const holderOf = new Int32Array(heap.total).fill(-1);
  const throughOf = new Int32Array(heap.total).fill(-1);
  for (let place = 0; place < tree.reached; place++) {
    const node = tree.order[place];
    count(constructorOf(heap, node), 1, sizeOf(heap, node));
    if (node === 0 || known.has(idOf(heap, node))) continue;
    const above = tree.parent[node];
    const fromOld = holderOf[above] === -1;
    holderOf[node] = fromOld ? above : holderOf[above];
    throughOf[node] = fromOld ? node : throughOf[above];
    const holder = holderOf[node];
    // In a scope each variable is a holder of its own.
    const key = isScope(heap, holder) ? `${holder}/${tree.via[throughOf[node]].name}` : String(holder);
    const entry = byHolder.get(key) || { holder, through: throughOf[node], size: 0, count: 0, kinds: new Map() };
    entry.size += sizeOf(heap, node);
    if (fromOld || typeOf(heap, node) === "object") entry.count += 1;
    const kind = constructorOf(heap, node);
    entry.kinds.set(kind, (entry.kinds.get(kind) || 0) + sizeOf(heap, node));
    byHolder.set(key, entry);
  }

  const entries = [];
  const add = (kind, name, where, size, number) => {
    if (size > 0) {
      entries.push({ name, kind, grew_bytes_per_invocation: size / invocations, grew_count_per_invocation: number / invocations,
        where });
    }
  };
  for (const { holder, through, size, count: number, kinds } of byHolder.values()) {
    const { name, where } = describe(heap, tree, files, isScope(heap, holder) ? through : holder);
    const most = [...kinds].sort((a, b) => b[1] - a[1])[0][0];
    const module = base(where);
    add("retainer", [module, name].filter(Boolean).join(".") || constructorOf(heap, holder),
      `${where ? `${where}: ` : ""}${constructorOf(heap, holder)} that holds ${most}`, size, number);
  }
  for (const [name, [number, size]] of counted) add("constructor", name, null, size, number);
  entries.sort((a, b) => b.grew_bytes_per_invocation - a.grew_bytes_per_invocation);
  return entries.slice(0, MOST);
}

process.stdout.write(JSON.stringify(compare(process.argv[2], process.argv[3], Number(process.argv[4]))));
