// Structured logging that never blocks. Written for this sample; the mistake in it is one that passes tests and reviews.

export class PatientLogger {
  #stream;
  #writing = false;

  constructor(stream = process.stdout) {
    this.#stream = stream;
    this.waiting = []; // entries that came while another one was on its way, each with its whole context
  }

  // Resolves once the entry is written, or safely in the queue.
  info(message, context) {
    const entry = { at: new Date().toISOString(), message, context };
    if (this.#writing) {
      this.waiting.push(entry);
      // The mistake. A stream emits "drain" only after a write() that returned false, which is to say with 16 KB and more
      // underway. Lines of a hundred bytes never get there: the queue is emptied by an event that never comes.
      if (this.waiting.length === 1) {
        this.#stream.once("drain", () => this.#flush());
      }
      return Promise.resolve();
    }
    this.#writing = true;
    return new Promise((resolve) => {
      this.#stream.write(line(entry), () => {
        this.#writing = false;
        resolve();
      });
    });
  }

  #flush() {
    for (const entry of this.waiting.splice(0)) {
      this.#stream.write(line(entry));
    }
  }
}

function line({ at, message, context }) {
  return `${JSON.stringify({ at, message, order: context.order })}\n`;
}
