/** The side pane: what goes over the wire, as it goes, with its times. */

import { make } from "./dom.js";

const MAX_ROWS = 2000;
const MAX_CHARACTERS = 4000;

export class Frames {
  /**
   * @param {Element} list takes a row for each frame
   * @param {Element} figures takes how many there were
   */
  constructor(list, figures) {
    Object.assign(this, { list, figures });
    this.clear();
  }

  /** Begin anew, with times from now on. */
  clear() {
    this.began = performance.now();
    this.rows = [];
    this.count = 0;
    this.bytes = 0;
    this.list.replaceChildren();
    this.#count();
  }

  /**
   * Show a frame.
   * @param {string} kind a type of event, "comment", "body", or "note" for what is no frame
   * @param {string} raw as it came
   */
  add(kind, raw) {
    if (kind !== "note") {
      this.count += 1;
      this.bytes += new TextEncoder().encode(raw).length;
    }
    const milliseconds = performance.now() - this.began;
    const now = new Date().toISOString();
    const shown = raw.length > MAX_CHARACTERS ? `${raw.slice(0, MAX_CHARACTERS)}… (${raw.length} characters)` : raw;
    const time = make("time", { dateTime: now, title: now, textContent: `+${(milliseconds / 1000).toFixed(3)} s` });
    const row = make("li", { "data-kind": kind }, time, make("code", { textContent: shown }));
    if (!this.rows.length) requestAnimationFrame(() => this.#flush());
    this.rows.push(row);
  }

  #flush() {
    // A reader who has scrolled back stays where they are.
    const pane = this.list;
    const follows = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 40;
    pane.append(...this.rows);
    this.rows = [];
    while (pane.childElementCount > MAX_ROWS) pane.firstElementChild.remove();
    if (follows) pane.scrollTop = pane.scrollHeight;
    this.#count();
  }

  #count() {
    this.figures.textContent = this.count ? `${this.count} ${this.count === 1 ? "frame" : "frames"}, ${this.bytes} bytes` : "";
  }
}
