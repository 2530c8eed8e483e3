/** The two side panels: beside the conversation where there is room, over it where there is none. */

import { byId } from "./dom.js";
import { choices } from "./store.js";

const PANELS = [
  { name: "sessions", wide: matchMedia("(min-width: 60rem)") },
  { name: "wire", wide: matchMedia("(min-width: 84rem)") },
];

function show({ name }, isOpen) {
  byId(name).hidden = !isOpen;
  byId(`show-${name}`).setAttribute("aria-expanded", String(isOpen));
}

const isOver = ({ name, wide }) => !wide.matches && !byId(name).hidden;

function close(panel) {
  show(panel, false);
  byId(`show-${panel.name}`).focus();
}

/** Close what lies over the conversation; says whether anything did. */
export function closeOverlays() {
  const over = PANELS.filter(isOver);
  over.forEach(close);
  return over.length > 0;
}

/** Open what was open, and let the buttons do their work. */
export function startPanels(onShow) {
  for (const panel of PANELS) {
    const choice = `panel:${panel.name}`;
    const arrange = () => show(panel, panel.wide.matches && choices.get(choice, true));
    panel.wide.addEventListener("change", arrange);
    arrange();
    byId(`show-${panel.name}`).addEventListener("click", () => {
      const opens = byId(panel.name).hidden;
      if (panel.wide.matches) choices.set(choice, opens);
      else PANELS.filter((other) => other !== panel && isOver(other)).forEach((other) => show(other, false));
      show(panel, opens);
      onShow();
      if (opens && !panel.wide.matches) byId(panel.name).querySelector("button, input:checked, a")?.focus();
    });
  }
}
