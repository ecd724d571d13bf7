// The three planes of a case: where each lies, what is clicked, the cross-hair, letters and scale. Who paints the slices
// (WebGL, or the server) is asked through `Painter`, so that both ways look and behave alike.
import { el } from "./dom";
import { ends, type Frame, type Triple } from "./nifti";

export type Plane = "axial" | "coronal" | "sagittal";
export const PLANES: Plane[] = ["axial", "coronal", "sagittal"];
/** Canonical axes (x 0, y 1, z 2) that run along columns and rows, and the one through the slices. Both are shown
 * turned, so that the patient's right, or front, is at the left edge. */
export const AXES: Record<Plane, { across: number; down: number; through: number }> = {
  axial: { across: 0, down: 1, through: 2 },
  coronal: { across: 0, down: 2, through: 1 },
  sagittal: { across: 1, down: 2, through: 0 },
};
export type Arrangement = "all" | Plane | "3d";

export type Rgb = [number, number, number];
export interface Shown {
  name: string;
  kind: "label" | "map";
  /** Colours by value; a value without one is not drawn. */
  colours: Map<number, Rgb>;
  /** A thick pale line, as references have. */
  wide: boolean;
  /** Filled, whatever the style. */
  filled: boolean;
}

export interface Look {
  scan: string | null;
  low: number;
  high: number;
  style: "outline" | "fill";
  opacity: number;
  /** Of layers in the order in which they are drawn. */
  shown: Shown[];
}

/** A plane in the stage, in CSS pixels: the pane, and where the slice's corner lies in it. */
export interface View {
  plane: Plane;
  index: number;
  pane: { left: number; top: number; width: number; height: number };
  left: number;
  top: number;
  /** Pixels of a voxel. */
  across: number;
  down: number;
}

export interface Painter {
  readonly element: HTMLElement;
  paint(views: View[], look: Look): void;
  dispose(): void;
}

const SCALES_MM = [1, 2, 5, 10, 20, 50, 100, 200];

interface Pane {
  root: HTMLElement;
  caption: HTMLElement;
  edges: HTMLElement[];
  vertical: HTMLElement;
  horizontal: HTMLElement;
  scale: HTMLElement;
  scaleText: HTMLElement;
}

export class Stage {
  readonly root: HTMLElement;
  readonly third: HTMLElement;
  position: Triple;
  active: Plane = "axial";
  arrangement: Arrangement = "all";
  zoom = 1;
  look: Look;
  onmove: () => void = () => {};
  onwindow: () => void = () => {};
  private panes = new Map<Plane, Pane>();
  private views: View[] = [];
  private waiting = 0;
  /** The view that was pointed in: it stays where it is until a key or the wheel moves it, lest it runs away under the mouse. */
  private held: View | null = null;
  private observer: ResizeObserver;

  constructor(readonly frame: Frame, private painter: Painter, look: Look) {
    this.look = look;
    this.position = frame.dims.map((n) => Math.floor(n / 2)) as Triple;
    this.third = el("div", { class: "pane third" });
    this.root = el("div", { class: "stage", "data-arranged": "all" }, painter.element);
    for (const plane of PLANES) {
      const pane = this.makePane(plane);
      this.panes.set(plane, pane);
      this.root.append(pane.root);
    }
    this.root.append(this.third);
    this.observer = new ResizeObserver(() => this.refresh());
    this.observer.observe(this.root);
  }

  private makePane(plane: Plane): Pane {
    const { across, down } = AXES[plane];
    const [low, high] = ends(this.frame.affine, across);
    const [bottom, top] = ends(this.frame.affine, down);
    const edges = [[high, "left"], [low, "right"], [top, "top"], [bottom, "bottom"]].map(([letter, side]) =>
      el("span", { class: `edge ${side}` }, letter!),
    );
    const pane: Pane = {
      caption: el("span", { class: "caption" }),
      edges,
      vertical: el("i", { class: "hair vertical" }),
      horizontal: el("i", { class: "hair horizontal" }),
      scaleText: el("span"),
      scale: el("i"),
      root: el("div", { class: "pane", "data-plane": plane }),
    };
    pane.root.append(pane.vertical, pane.horizontal, ...edges, pane.caption, el("div", { class: "scale" }, pane.scale, pane.scaleText));
    this.listen(plane, pane.root);
    return pane;
  }

  private listen(plane: Plane, root: HTMLElement): void {
    let turned = 0;
    let dragging: { x: number; y: number; low: number; high: number } | null = null;
    root.addEventListener("contextmenu", (event) => event.preventDefault());
    root.addEventListener("pointerdown", (event) => {
      if (event.button > 2) return;
      root.setPointerCapture(event.pointerId);
      dragging = { x: event.clientX, y: event.clientY, low: this.look.low, high: this.look.high };
      this.active = plane;
      if (event.button !== 0) return;
      this.held = this.viewOf(plane) ?? null;
      this.point(plane, event);
    });
    root.addEventListener("pointermove", (event) => {
      if (!dragging) return;
      if (event.buttons & 1) this.point(plane, event);
      else if (event.buttons & 2) this.drag(dragging, event);
    });
    for (const name of ["pointerup", "pointercancel"]) root.addEventListener(name, () => (dragging = null));
    root.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.active = plane;
        if (event.ctrlKey) this.zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15);
        else {
          turned += event.deltaY; // a wheel's notch is a slice, and so is a little way on a touchpad
          if (Math.abs(turned) < 40) return;
          this.step(turned < 0 ? 1 : -1);
          turned = 0;
        }
      },
      { passive: false },
    );
  }

  private point(plane: Plane, event: PointerEvent): void {
    const view = this.views.find((one) => one.plane === plane);
    if (!view) return;
    const box = this.root.getBoundingClientRect();
    const { across, down } = AXES[plane];
    const x = this.frame.dims[across]! - (event.clientX - box.left - view.left) / view.across;
    const y = this.frame.dims[down]! - (event.clientY - box.top - view.top) / view.down;
    const position = [...this.position] as Triple;
    position[across] = Math.floor(x);
    position[down] = Math.floor(y);
    this.moveTo(position, true);
  }

  /** Brightness up and down, contrast left and right. */
  private drag(from: { x: number; y: number; low: number; high: number }, event: PointerEvent): void {
    const width = Math.max(1e-30, (from.high - from.low) * Math.exp((event.clientX - from.x) / 250));
    const level = (from.high + from.low) / 2 + ((event.clientY - from.y) / 400) * (from.high - from.low);
    this.look.low = level - width / 2;
    this.look.high = level + width / 2;
    this.onwindow();
    this.refresh();
  }

  moveTo(position: Triple, pointed = false): void {
    if (!pointed) this.held = null;
    this.position = position.map((value, axis) => Math.min(Math.max(Math.round(value), 0), this.frame.dims[axis]! - 1)) as Triple;
    this.refresh();
    this.onmove();
  }

  step(by: number, axis = AXES[this.active].through): void {
    const position = [...this.position] as Triple;
    position[axis]! += by;
    this.moveTo(position);
  }

  zoomBy(factor: number): void {
    this.zoom = Math.min(Math.max(this.zoom * factor, 1), 12);
    if (this.zoom < 1.02) this.zoom = 1;
    this.held = null;
    this.refresh();
  }

  arrange(how: Arrangement): void {
    this.arrangement = how;
    this.root.dataset.arranged = how;
    if (how !== "all" && how !== "3d") this.active = how;
    this.refresh();
  }

  /** Paints at the next frame; many calls before it are one. */
  refresh(): void {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.layOut();
      this.painter.paint(this.views, this.look);
    });
  }

  private layOut(): void {
    const stage = this.root.getBoundingClientRect();
    this.views = [];
    for (const plane of PLANES) {
      const pane = this.panes.get(plane)!;
      const box = pane.root.getBoundingClientRect();
      pane.root.classList.toggle("active", plane === this.active && this.arrangement === "all");
      if (box.width < 2 || box.height < 2) continue;
      this.views.push(this.place(plane, pane, { left: box.left - stage.left, top: box.top - stage.top, width: box.width, height: box.height }));
    }
  }

  private place(plane: Plane, pane: Pane, box: View["pane"]): View {
    const { across, down, through } = AXES[plane];
    const { dims, spacing } = this.frame;
    const [wide, high] = [dims[across]! * spacing[across]!, dims[down]! * spacing[down]!];
    const scale = Math.min(box.width / wide, box.height / high) * this.zoom;
    const at = (length: number, whole: number, axis: number) => {
      // centred where the slice fits, else on the cross-hair without leaving the slice's edges
      if (whole * scale <= length) return (length - whole * scale) / 2;
      const hair = (dims[axis]! - this.position[axis]! - 0.5) * spacing[axis]! * scale;
      return Math.min(0, Math.max(length - whole * scale, length / 2 - hair));
    };
    const same = (one: View["pane"]) => one.width === box.width && one.height === box.height;
    const held = this.held?.plane === plane && same(this.held.pane) ? this.held : null;
    const view: View = {
      plane,
      index: this.position[through]!,
      pane: box,
      left: box.left + (held ? held.left - held.pane.left : at(box.width, wide, across)),
      top: box.top + (held ? held.top - held.pane.top : at(box.height, high, down)),
      across: spacing[across]! * scale,
      down: spacing[down]! * scale,
    };
    pane.caption.textContent = `${plane[0]!.toUpperCase()}${plane.slice(1)} ${view.index + 1} / ${dims[through]}`;
    const x = view.left - box.left + (dims[across]! - this.position[across]! - 0.5) * view.across;
    const y = view.top - box.top + (dims[down]! - this.position[down]! - 0.5) * view.down;
    pane.vertical.style.transform = `translateX(${x.toFixed(1)}px)`;
    pane.horizontal.style.transform = `translateY(${y.toFixed(1)}px)`;
    const mm = SCALES_MM.filter((length) => length * scale <= 0.25 * box.width).at(-1) ?? 1;
    pane.scale.style.width = `${(mm * scale).toFixed(1)}px`;
    pane.scaleText.textContent = `${mm} mm`;
    return view;
  }

  /** Where a plane is now: of use to tests and to those who measure. */
  viewOf(plane: Plane): View | undefined {
    return this.views.find((view) => view.plane === plane);
  }

  dispose(): void {
    cancelAnimationFrame(this.waiting);
    this.waiting = 1; // nothing more is painted
    this.observer.disconnect();
    this.painter.dispose();
  }
}
