/** The images that go with the next message. */

import { byId, make } from "./dom.js";
import { imageBudget, MAX_IMAGES, scaleImage } from "./images.js";

export class Attachments {
  /** @param {(words: string) => void} tell says what is wrong */
  constructor(tell) {
    this.tell = tell;
    this.images = [];
  }

  /** Take files for an endpoint; what is no image, and what is one too many, is refused in words. */
  async add(files, endpoint) {
    this.tell("");
    for (const file of files) {
      if (this.images.length >= MAX_IMAGES) {
        this.tell(`A message takes ${MAX_IMAGES} images.`);
        break;
      }
      try {
        this.images.push(await scaleImage(file, imageBudget(endpoint.maxBodyBytes), endpoint.imageTypes));
      } catch (problem) {
        this.tell(problem.message);
      }
    }
    this.#draw();
  }

  /** Return the images and let go of them. */
  take() {
    const taken = this.images;
    this.images = [];
    this.#draw();
    return taken;
  }

  #draw() {
    const items = this.images.map((image, index) => {
      const words = `${image.width} × ${image.height}, ${Math.ceil(image.bytes / 1024)} KB`;
      const remove = make("button.quiet", { type: "button", textContent: "×", "aria-label": `Remove ${image.name}` });
      remove.addEventListener("click", () => {
        this.images.splice(index, 1);
        this.#draw();
        byId("message").focus();
      });
      const picture = make("div.picture", {}, make("img", { src: image.uri, alt: image.name }), remove);
      return make("li", {}, picture, make("small", { textContent: words }));
    });
    byId("attachments").replaceChildren(...items);
  }
}
