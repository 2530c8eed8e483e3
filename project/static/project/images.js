/** Images that are attached: drawn anew in the page, so that they fit the body limit and carry no place and no camera. */

export const MAX_IMAGES = 4;
const MAX_SIDE = 1568;
const MIN_SIDE = 32;
const QUALITY = 0.85;

/** Return how many bytes an attached image may have: the limit less room for the text, shared, and less base64's third. */
export function imageBudget(maxBodyBytes) {
  const room = maxBodyBytes - Math.min(65_536, maxBodyBytes / 4);
  return Math.floor((room / MAX_IMAGES) * 0.74);
}

const blobOf = (canvas, type) => new Promise((resolve) => canvas.toBlob(resolve, type, QUALITY));

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/**
 * Return an image, scaled down as far as it has to be.
 * @param {File} file
 * @param {number} budget largest size in bytes
 * @param {string[]} types media types that the endpoint takes
 * @returns {Promise<{uri: string, width: number, height: number, bytes: number, name: string}>}
 * @throws {Error} if the browser cannot read it, or it cannot be made small enough
 */
export async function scaleImage(file, budget, types) {
  const type = ["image/jpeg", "image/png"].find((one) => types.includes(one));
  if (!type) throw new Error("This endpoint takes no images.");
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is no image that this browser can read.`);
  }
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  try {
    let side = Math.min(MAX_SIDE, Math.max(picture.width, picture.height));
    for (; side >= Math.min(MIN_SIDE, Math.max(picture.width, picture.height)); side = Math.floor(side * 0.8)) {
      const scale = side / Math.max(picture.width, picture.height);
      canvas.width = Math.max(1, Math.round(picture.width * scale));
      canvas.height = Math.max(1, Math.round(picture.height * scale));
      // JPEG has no transparency: what shines through is white, not black.
      context.fillStyle = "#fff";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(picture, 0, 0, canvas.width, canvas.height);
      const blob = await blobOf(canvas, type);
      if (blob && blob.size <= budget) {
        const uri = await dataUrl(blob);
        return { uri, width: canvas.width, height: canvas.height, bytes: blob.size, name: file.name };
      }
      if (side <= 1) break;
    }
  } finally {
    picture.close();
  }
  throw new Error(`${file.name} cannot be made small enough for this endpoint.`);
}
