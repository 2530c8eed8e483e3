/**
 * An answer's Markdown as elements, safely: marked reads it, DOMPurify makes the elements.
 *
 * A model is not trusted. Raw HTML is shown as text; images become links, so that nothing is fetched before a person
 * clicks; of what is left, only the tags and attributes below come through.
 */

import DOMPurify from "./vendor/dompurify/purify.es.mjs";
import { Marked } from "./vendor/marked/marked.esm.js";

const TAGS = "a blockquote br code del em h3 h4 h5 h6 hr li ol p pre strong table tbody td th thead tr ul".split(" ");
const RULES = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["href", "title", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const escaped = (text) => text.replace(/[&<>"']/g, (one) => `&#${one.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  renderer: {
    html: ({ text }) => escaped(text),
    image({ href, text }) {
      return `<a href="${escaped(href)}">${escaped(text || href)}</a>`;
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    // The page has the first two levels itself.
    heading({ tokens, depth }) {
      const level = Math.min(depth + 2, 6);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
  },
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName !== "A" || !node.hasAttribute("href")) return;
  node.setAttribute("rel", "noopener noreferrer");
  node.setAttribute("target", "_blank");
});

/** Return the elements of a Markdown text. */
function render(text) {
  const fragment = DOMPurify.sanitize(marked.parse(text), RULES);
  // What is wider than the page scrolls by itself, and by the keyboard.
  for (const wide of fragment.querySelectorAll("table, pre")) {
    const frame = document.createElement("div");
    frame.className = wide.localName === "pre" ? "code" : "wide";
    frame.tabIndex = 0;
    wide.replaceWith(frame);
    frame.append(wide);
  }
  return fragment;
}

/**
 * Show a Markdown text in an element. What is there already and has not changed stays, with a reader's selection in it.
 * @param {Element} element
 * @param {string} text
 */
export function showMarkdown(element, text) {
  const fresh = [...render(text).childNodes];
  let same = 0;
  while (same < fresh.length && element.childNodes[same]?.isEqualNode(fresh[same])) same += 1;
  while (element.childNodes.length > same) element.lastChild.remove();
  element.append(...fresh.slice(same));
}
