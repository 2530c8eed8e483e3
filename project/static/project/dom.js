/** Small helpers for elements. Nothing here, or anywhere in the page, takes HTML as text. */

/**
 * Return a new element.
 * @param {string} name of the tag; classes may follow dots
 * @param {object} properties such as `textContent`; "aria-…" and "data-…" become attributes
 * @param {...(Node|string)} children
 */
export function make(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (/^(aria|data)-|^role$/.test(key)) element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

/** Return the element of an id. */
export const byId = (id) => document.getElementById(id);

/** Return a moment as a short time of day, with the date where that is another one. */
export function shortTime(moment) {
  const date = new Date(moment);
  const today = date.toDateString() === new Date().toDateString();
  const options = today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" };
  return date.toLocaleString(document.documentElement.lang, options);
}

/** Return JSON as one reads it; a text as it is. */
export const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

/** Return what lets Enter send a form from a text of several lines, and Shift+Enter begin a line. */
export function sendOnEnter(form) {
  return (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  };
}

/** Copy a text; where the browser has no clipboard for this page, through a selection. Says whether it was done. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = make("textarea.offscreen", { value: text, readOnly: true });
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}

/** Return a button that copies what a function returns, and says that it did. */
export function copyButton(words, textOf) {
  const button = make("button.quiet", { type: "button", textContent: words });
  button.addEventListener("click", async () => {
    button.textContent = (await copy(textOf())) ? "Copied" : "Select it and press Ctrl+C";
    setTimeout(() => (button.textContent = words), 2000);
  });
  return button;
}
