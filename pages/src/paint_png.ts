// Slices that the server draws, for browsers without WebGL2. At most one request a plane is under way; the newest wish
// follows it, and the old picture stays until the new one is decoded.
import { ofCase, query } from "./api";
import { el } from "./dom";
import { AXES, type Look, type Painter, type Plane, type View } from "./stage";
import type { Triple } from "./nifti";

interface Picture { frame: HTMLElement; image: HTMLImageElement | null; wanted: string; loading: boolean }

export class PngPainter implements Painter {
  readonly element = el("div", { class: "painted" });
  private pictures = new Map<Plane, Picture>();
  private disposed = false;

  constructor(private id: string, private dims: Triple, private organ: () => string | null) {}

  paint(views: View[], look: Look): void {
    for (const [plane, picture] of this.pictures) picture.frame.hidden = !views.some((view) => view.plane === plane);
    for (const view of views) this.show(view, look);
  }

  private show(view: View, look: Look): void {
    let picture = this.pictures.get(view.plane);
    if (!picture) {
      picture = { frame: el("div", { class: "clip" }), image: null, wanted: "", loading: false };
      this.element.append(picture.frame);
      this.pictures.set(view.plane, picture);
    }
    const { pane } = view;
    Object.assign(picture.frame.style, { left: `${pane.left}px`, top: `${pane.top}px`, width: `${pane.width}px`, height: `${pane.height}px` });
    picture.wanted = `${ofCase(this.id, "slice.png")}?${query({
      plane: view.plane,
      index: String(view.index),
      layers: look.shown.map((one) => one.name).join(","),
      style: look.style,
      opacity: look.opacity.toFixed(2),
      low: String(Math.round(look.low * 100) / 100),
      high: String(Math.round(look.high * 100) / 100),
      organ: this.organ(),
    })}`;
    const size = [this.dims[AXES[view.plane].across]! * view.across, this.dims[AXES[view.plane].down]! * view.down];
    const place = { left: `${view.left - pane.left}px`, top: `${view.top - pane.top}px`, width: `${size[0]}px`, height: `${size[1]}px` };
    if (picture.image) Object.assign(picture.image.style, place);
    void this.load(picture, place);
  }

  private async load(picture: Picture, place: Record<string, string>): Promise<void> {
    if (picture.loading) return;
    picture.loading = true;
    try {
      while (!this.disposed && picture.image?.dataset.address !== picture.wanted) {
        const image = el("img", { alt: "", draggable: "false" });
        const address = picture.wanted;
        image.dataset.address = address;
        image.src = address;
        try {
          await image.decode();
        } catch {
          image.dataset.failed = "1";
        }
        Object.assign(image.style, place, picture.image ? { left: picture.image.style.left, top: picture.image.style.top, width: picture.image.style.width, height: picture.image.style.height } : {});
        picture.frame.replaceChildren(image);
        picture.image = image;
      }
    } finally {
      picture.loading = false;
    }
  }

  dispose(): void {
    this.disposed = true;
    this.element.replaceChildren();
  }
}
