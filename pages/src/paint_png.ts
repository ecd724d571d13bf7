// Slices that the server draws, for browsers without WebGL2. At most one request a plane is under way; the newest wish
// follows it, and the old picture stays until the new one is decoded.
import { bytes, ofCase, query, type Layer } from "./api";
import { el } from "./dom";
import { complain } from "./shell";
import { AXES, type Look, type Painter, type Plane, type View } from "./stage";
import type { Triple } from "./nifti";

const LARGEST = 1024;

interface Picture { frame: HTMLElement; image: HTMLImageElement | null; tried: string; place: Record<string, string>; wanted: string; loading: Promise<void> | null }

export class PngPainter implements Painter {
  readonly element = el("div", { class: "painted" });
  private pictures = new Map<Plane, Picture>();
  private disposed = false;
  private version = "";

  constructor(private id: string, private dims: Triple, private organ: () => string | null) {}

  /** From now on pictures are of these layers as their files are now. */
  keep(layers: Layer[]): void {
    this.version = layers.map(({ url }) => url.split("?v=")[1]).join(".");
  }

  paint(views: View[], look: Look): void {
    for (const [plane, picture] of this.pictures) picture.frame.hidden = !views.some((view) => view.plane === plane);
    for (const view of views) this.show(view, look);
  }

  private show(view: View, look: Look): void {
    let picture = this.pictures.get(view.plane);
    if (!picture) {
      picture = { frame: el("div", { class: "clip" }), image: null, tried: "", place: {}, wanted: "", loading: null };
      this.element.append(picture.frame);
      this.pictures.set(view.plane, picture);
    }
    const { pane } = view;
    Object.assign(picture.frame.style, { left: `${pane.left}px`, top: `${pane.top}px`, width: `${pane.width}px`, height: `${pane.height}px` });
    const size: [number, number] = [this.dims[AXES[view.plane].across]! * view.across, this.dims[AXES[view.plane].down]! * view.down];
    const pixels = Math.max(...size) * (window.devicePixelRatio || 1);
    picture.wanted = `${ofCase(this.id, "slice.png")}?${query({
      plane: view.plane,
      index: String(view.index),
      layers: [...(look.scan && look.scan !== "scan" ? [look.scan] : []), ...look.shown.map((one) => one.name)].join(","),
      style: look.style,
      opacity: look.opacity.toFixed(2),
      low: look.low.toPrecision(6),
      high: look.high.toPrecision(6),
      organ: this.organ(),
      v: this.version,
      size: Math.min(LARGEST, Math.max(128, 128 * Math.ceil(pixels / 128))),
    })}`;
    picture.place = { left: `${view.left - pane.left}px`, top: `${view.top - pane.top}px`, width: `${size[0]}px`, height: `${size[1]}px` };
    if (picture.image) Object.assign(picture.image.style, picture.place);
    picture.loading ??= this.load(picture).finally(() => {
      picture.loading = null;
      picture.frame.classList.remove("loading");
    });
  }

  /** When all that was wished for is there. */
  async settled(): Promise<void> {
    await Promise.all([...this.pictures.values()].map((picture) => picture.loading));
  }

  private async load(picture: Picture): Promise<void> {
    while (!this.disposed && picture.tried !== picture.wanted) {
      picture.frame.classList.add("loading");
      picture.tried = picture.wanted;
      const image = el("img", { alt: "", draggable: "false" });
      try {
        image.src = URL.createObjectURL(new Blob([await bytes(picture.wanted)], { type: "image/png" }));
        await image.decode();
        Object.assign(image.style, picture.place);
        picture.frame.replaceChildren(image);
        picture.image = image;
      } catch (error) {
        if (this.disposed) return;
        complain(error);
        picture.frame.replaceChildren(el("p", { class: "wait" }, "This slice could not be drawn."));
        picture.image = null;
      } finally {
        URL.revokeObjectURL(image.src);
      }
    }
  }

  dispose(): void {
    this.disposed = true;
    this.element.replaceChildren();
  }
}
