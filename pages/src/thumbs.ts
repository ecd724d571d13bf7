// Thumbnails, two at a time and only those in sight: a browser has six connections to a server, and answers that are
// waited for must not stand behind pictures.
import { ofCase } from "./api";
import { el } from "./dom";

const AT_ONCE = 2;
const waiting: HTMLImageElement[] = [];
let loading = 0;

const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const image = entry.target as HTMLImageElement;
      if (entry.isIntersecting) waiting.push(image);
      else if (waiting.includes(image)) waiting.splice(waiting.indexOf(image), 1);
    }
    next();
  },
  { rootMargin: "200px" },
);

function next(): void {
  while (loading < AT_ONCE && waiting.length) {
    const image = waiting.shift()!;
    if (!image.isConnected) continue;
    seen.unobserve(image);
    loading++;
    const done = () => {
      loading--;
      next();
    };
    image.addEventListener("load", done, { once: true });
    image.addEventListener("error", done, { once: true });
    image.src = image.dataset.src!;
  }
}

export function thumbnail(id: string, size: number): HTMLImageElement {
  const image = el("img", { alt: "", width: size, height: size, "data-src": ofCase(id, "thumbnail.png") });
  seen.observe(image);
  return image;
}
