/** The exact request in the side pane, in the language that was chosen. */

import { byId, copyButton } from "./dom.js";
import { asCurl, asJavaScript, asPython } from "./snippets.js";
import { choices } from "./store.js";

const LANGUAGES = { curl: asCurl, python: asPython, javascript: asJavaScript };
// An image fills pages; what is copied has it whole.
const LONG_DATA = /(;base64,[A-Za-z0-9+/]{24})[A-Za-z0-9+/=]{200,}/g;

/** Shows a request; `sent` has an id, a draft has none yet. */
export class RequestPane {
  constructor(isSignedIn) {
    this.isSignedIn = isSignedIn;
    this.request = null;
    this.chosen = [...document.querySelectorAll("input[name=language]")];
    const language = choices.get("language", "curl");
    for (const radio of this.chosen) {
      radio.checked = radio.value === language;
      radio.addEventListener("change", () => {
        choices.set("language", radio.value);
        this.draw();
      });
    }
    byId("same-id").addEventListener("change", () => this.draw());
    byId("snippet-tools").prepend(copyButton("Copy", () => this.text()));
  }

  /** Show a request: `{url, body, id}`; the id is null as long as it was not sent. */
  show(request) {
    this.request = request;
    this.draw();
  }

  text() {
    const write = LANGUAGES[this.chosen.find((radio) => radio.checked).value];
    const id = byId("same-id").checked ? this.request.id : null;
    return write({ ...this.request, id, signedIn: this.isSignedIn });
  }

  draw() {
    // What nobody sees is not written out at each key.
    if (!this.request || byId("wire").hidden) return;
    byId("snippet").textContent = this.text().replace(LONG_DATA, "$1…");
    byId("same-id").parentElement.hidden = !this.request.id;
    const language = this.chosen.find((radio) => radio.checked).value;
    byId("snippet-note").textContent =
      this.isSignedIn && language !== "javascript"
        ? "You are logged in by cookies: SESSIONID and CSRFTOKEN are those of this page, as the developer tools show them."
        : "";
  }
}
