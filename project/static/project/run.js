/** One invocation: sent, read, found again when the connection is lost, and stopped. */

import { readEvents } from "./sse.js";

const RETRY_SECONDS = [0.3, 1, 2, 4, 8, 8, 8, 8, 8, 8];
const CANCEL_ATTEMPTS = 10;

const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

/** The connection was lost. */
class Lost extends Error {}

/**
 * How an invocation ended, as far as the page has seen:
 * @typedef {{kind: "done"|"failed"|"left", pending: object[], words: string, status: number, asker: string,
 *   isLost: boolean|undefined}} Outcome
 */

export class Run {
  /**
   * @param {object} options
   * @param {object} options.endpoint as the page's configuration has it
   * @param {string} options.id of the invocation
   * @param {string} options.csrf token for the header
   * @param {(text: string) => void} options.onText takes the whole answer so far
   * @param {(kind: string, raw: string) => void} options.onFrame takes what goes over the wire
   * @param {(seconds: number|null) => void} options.onLost is told when the connection is lost (next try in so many
   *   seconds) and, with null, when it is there again
   */
  constructor({ endpoint, id, csrf, onText, onFrame, onLost }) {
    Object.assign(this, { endpoint, id, csrf, onText, onFrame, onLost });
    this.text = "";
    this.pending = [];
    this.count = 0;
    this.attempts = 0;
    this.leaving = new AbortController();
  }

  get url() {
    return `${this.endpoint.base}/${encodeURIComponent(this.id)}`;
  }

  /** Stop reading. The run goes on. */
  leave() {
    this.leaving.abort();
  }

  /** Send the invocation and read its answer. A repeated id runs nothing twice, so a lost request is sent again. */
  send(body) {
    const text = JSON.stringify(body);
    return this.#persist(() => {
      // What was read of a stream is not read again.
      if (this.count) return this.#follow();
      return this.#post(text, body.stream);
    });
  }

  /** Read the answer of an invocation that was sent earlier, from where the page is. */
  follow() {
    return this.#persist(() => this.#follow());
  }

  /** Cancel the invocation; whoever reads it is told of its end there. Says whether the server could be asked. */
  async stop() {
    for (let attempt = 0; attempt < CANCEL_ATTEMPTS; attempt += 1) {
      try {
        const response = await fetch(`${this.url}/cancel`, { method: "POST", headers: this.#headers() });
        this.onFrame("note", `POST ${this.url}/cancel → ${response.status}`);
        if (response.ok) return true;
        if (response.status !== 404) return false;
      } catch {
        return false;
      }
      // It is known as soon as its turn has begun.
      await wait(0.2);
    }
    return false;
  }

  async #persist(step) {
    for (;;) {
      try {
        return await step();
      } catch (problem) {
        if (this.leaving.signal.aborted) return { kind: "left" };
        if (!(problem instanceof Lost)) throw problem;
        if (this.attempts >= RETRY_SECONDS.length) {
          const words = "The connection was lost, and the server does not answer. The run may go on: reload to look.";
          return { ...this.#failed(0, words), isLost: true };
        }
        const seconds = RETRY_SECONDS[this.attempts];
        this.attempts += 1;
        this.onLost(seconds);
        this.onFrame("note", `connection lost, next try in ${seconds} s`);
        await wait(seconds);
        if (this.leaving.signal.aborted) return { kind: "left" };
      }
    }
  }

  async #post(text, streams) {
    const headers = { "Content-Type": "application/json", "x-agent-invocation-id": this.id, ...this.#headers() };
    const response = await this.#fetch(this.endpoint.invoke, { method: "POST", headers, body: text });
    if (!response.ok || !streams) return this.#whole(response);
    return this.#events(response);
  }

  async #follow() {
    const response = await this.#fetch(`${this.url}/events`, { headers: { "Last-Event-ID": String(this.count) } });
    if (response.status === 204) return this.#ended(await this.#status());
    return response.ok ? this.#events(response) : this.#whole(response);
  }

  async #status() {
    const response = await this.#fetch(this.url, {});
    return response.json();
  }

  /** Read an answer that is one JSON object. */
  async #whole(response) {
    const text = await response.text().catch(() => {
      throw new Lost();
    });
    this.onFrame("body", text);
    this.#isBack();
    let told = {};
    try {
      told = JSON.parse(text);
    } catch {
      // A page of a proxy, perhaps: its status says enough.
    }
    if (!response.ok) {
      const words = told.error ?? `${response.status} ${response.statusText}`;
      return this.#failed(response.status, words, { pending: told.pending, asker: told.invocation_id });
    }
    this.#show(told.response ?? "");
    return this.#done(told.pending ?? []);
  }

  /** Read an answer that is a stream. */
  async #events(response) {
    const events = readEvents(response.body);
    for (;;) {
      const { value: event, done } = await events.next().catch(() => {
        throw new Lost();
      });
      if (done) throw new Lost();
      this.onFrame(event.type, event.raw);
      this.#isBack();
      if (event.type === "comment") continue;
      this.count += 1;
      const outcome = this.#take(event);
      if (outcome) {
        await events.return();
        return outcome;
      }
    }
  }

  #take(event) {
    if (event.type === "error") return this.#failed(0, event.data);
    if (event.type === "reset") return this.#ended(JSON.parse(event.data));
    if (event.type === "request_info") this.pending.push(JSON.parse(event.data));
    if (event.type !== "message") return null;
    if (event.data === "[DONE]") return this.#done(this.pending);
    this.#show(this.text + event.data);
    return null;
  }

  #ended(status) {
    if (status.error) return this.#failed(status.error.status, status.error.message);
    this.#show(status.response ?? "");
    return this.#done(status.pending ?? []);
  }

  #show(text) {
    this.text = text;
    this.onText(text);
  }

  #isBack() {
    if (this.attempts) this.onLost(null);
    this.attempts = 0;
  }

  #done(pending) {
    return { kind: "done", pending, words: "", status: 200, asker: this.id };
  }

  #failed(status, words, { pending = [], asker = null } = {}) {
    return { kind: "failed", pending, words, status, asker };
  }

  #headers() {
    return { "X-CSRFToken": this.csrf };
  }

  async #fetch(url, options) {
    const method = options.method ?? "GET";
    const from = options.headers?.["Last-Event-ID"];
    this.onFrame("note", `${method} ${url}${from === undefined ? "" : ` (Last-Event-ID: ${from})`}`);
    let response;
    try {
      response = await fetch(url, { ...options, signal: this.leaving.signal });
    } catch {
      throw new Lost();
    }
    this.onFrame("note", `${response.status} ${response.statusText} · ${response.headers.get("content-type") ?? ""}`);
    // A proxy whose server restarts; the endpoint's own 504 has the id.
    if (response.status === 502 || (response.status === 504 && !response.headers.has("x-agent-invocation-id"))) throw new Lost();
    return response;
  }
}
