/** The conversation on the page: what was said, by whom, and what became of it. */

import { copyButton, make, pretty, shortTime } from "./dom.js";
import { showMarkdown } from "./markdown.js";

// As often as a person sees a difference; parsing a long answer at each word would not keep up.
const DRAW_MILLISECONDS = 60;

/** An answer, from its first word to its end. `aroundDraw`, where given, is called before it grows, and what it returns after. */
export class Answer {
  constructor() {
    this.body = make("div.body", { dir: "auto" });
    this.element = make("li.agent", { "aria-busy": "true" }, make("h2.offscreen", { textContent: "Agent" }), this.body);
    this.wait = make("p.wait", { "aria-hidden": "true" }, make("i"), make("i"), make("i"));
    this.element.append(this.wait);
    this.text = "";
    this.timer = null;
  }

  /** Show the text so far; soon, where it comes quickly. */
  show(text) {
    this.text = text;
    this.timer ??= setTimeout(() => this.draw(), DRAW_MILLISECONDS);
  }

  draw() {
    clearTimeout(this.timer);
    this.timer = null;
    if (this.text) this.wait.remove();
    const afterwards = this.aroundDraw?.();
    showMarkdown(this.body, this.text);
    afterwards?.();
  }

  /** It has ended, well or not. */
  end() {
    this.draw();
    this.wait.remove();
    this.element.removeAttribute("aria-busy");
    if (this.text) this.element.append(make("p.meta", {}, copyButton("Copy", () => this.text)));
  }

  /** Say in one quiet line what became of it. */
  note(words) {
    this.element.append(make("p.note", { textContent: words }));
  }

  /**
   * Say what went wrong.
   * @param {string} words of the endpoint
   * @param {{code?: string, status?: number, correlation?: string, admin?: string, hint?: string}} details
   */
  fail(words, { code, status, correlation, admin, hint }) {
    const facts = [code, status ? `HTTP ${status}` : ""].filter(Boolean).join(" · ");
    const card = make("div.failure", {}, make("p", { textContent: words, dir: "auto" }));
    if (facts) card.append(make("p.facts", { textContent: facts }));
    if (correlation) {
      const id = make("code", { textContent: correlation });
      const link = admin ? make("a", { href: admin, textContent: "open in the admin" }) : "";
      card.append(make("p.facts", {}, "Correlation id, as the log has it: ", id, admin ? " · " : "", link));
    }
    if (hint) card.append(make("p.facts", { textContent: hint }));
    this.element.classList.add("failed");
    this.element.append(card);
  }
}

/** Return a message of the person's. */
export function question(words, images = []) {
  const item = make("li.user", {}, make("h2.offscreen", { textContent: "You" }));
  if (words) item.append(make("div.body.plain", { textContent: words, dir: "auto" }));
  if (images.length) item.append(make("div.images", {}, ...images.map((src) => make("img", { src, alt: "Attached image" }))));
  return item;
}

function fold(words, value) {
  const details = make("details.tool", {}, make("summary", { textContent: words }));
  if (value !== undefined && value !== null) details.append(make("pre", { textContent: pretty(value), tabIndex: 0, dir: "auto" }));
  return details;
}

function toolPart(part) {
  if ("call" in part) return fold(`Called ${part.call}`, part.arguments);
  if ("result" in part) return fold("Result", part.result);
  if ("asked" in part) return fold(`Asked to call ${part.asked}`, part.arguments);
  return make("p.note", { textContent: `${part.approved ? "Approved" : "Refused"}: ${part.tool}` });
}

/** Return what was said earlier, as elements. */
export function storedMessages(messages) {
  return messages.filter(({ parts }) => parts.length).map(({ role, parts, at }) => {
    const isPerson = role === "user" && parts.some((part) => "text" in part || "image" in part);
    const text = parts.filter((part) => "text" in part).map((part) => part.text).join("");
    const images = parts.filter((part) => "image" in part).map((part) => part.image);
    const item = isPerson ? question(text, images) : make("li.agent", {}, make("h2.offscreen", { textContent: "Agent" }));
    item.title = shortTime(at);
    if (isPerson) return item;
    // A call that a person was asked about is there twice; asked is what it was.
    const asked = parts.filter((part) => "asked" in part).map((part) => part.asked);
    const others = parts.filter((part) => !("text" in part || "image" in part || asked.includes(part.call)));
    item.append(...others.map(toolPart));
    if (text) {
      const body = make("div.body", { dir: "auto" });
      showMarkdown(body, text);
      item.append(body, make("p.meta", {}, copyButton("Copy", () => text)));
    }
    return item;
  });
}
