// A circuit breaker: closed (work is done), open (work is refused at once), half open (one piece of work is tried).

export class CircuitBreaker {
  #failures = 0;
  #openedAt = null;

  constructor({ failuresToOpen, retryAfterMs, isFailure, now = Date.now }) {
    Object.assign(this, { failuresToOpen, retryAfterMs, isFailure, now });
  }

  get failures() {
    return this.#failures;
  }

  get state() {
    if (this.#openedAt === null) return "closed";
    // The state is worked out when somebody asks, from the clock on the wall: a timer would not run in the freeze.
    return this.now() - this.#openedAt < this.retryAfterMs ? "open" : "half open";
  }

  // How long a caller should wait before it asks again.
  get waitMs() {
    return this.state === "open" ? this.retryAfterMs - (this.now() - this.#openedAt) : 0;
  }

  async run(work) {
    const before = this.state;
    if (before === "open") throw new Refused(`refused: the last ${this.#failures} tries ran out of memory`);
    try {
      const result = await work();
      this.#failures = 0;
      this.#openedAt = null;
      return result;
    } catch (error) {
      if (this.isFailure(error)) {
        this.#failures += 1;
        // A try in the state half open is the last one for a while, where it fails.
        if (before === "half open" || this.#failures >= this.failuresToOpen) this.#openedAt = this.now();
      }
      throw error;
    }
  }
}

export class Refused extends Error {}
