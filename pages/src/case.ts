// One case: its layers in three planes and in 3D, what is known of its organs, and the decision.
import { bytes, getCase, ofCase, post, Refused, unlost, type Case, type Decision, type Layer } from "./api";
import { list, listed, showFolder } from "./cases";
import { el, fill, fixed, key, swatch, volume, words } from "./dom";
import { setBindings, type Binding } from "./keys";
import { frameOf, parseNifti, type Frame, type Triple, type Volume } from "./nifti";
import { GlPainter, webGl } from "./paint_gl";
import { PngPainter } from "./paint_png";
import { complain, go, hashOfCase, info, origin, toast, type Page, type Where } from "./shell";
import { PLANES, Stage, type Arrangement, type Look, type Plane, type Rgb, type Shown } from "./stage";
import { badge, VERDICTS } from "./verdicts";
import type { Turning } from "./volume3d";

const DIFFERENCE: [number, string, Rgb][] = [
  [1, "missed", [255, 112, 67]],
  [2, "added", [64, 190, 255]],
  [3, "another organ", [240, 228, 66]],
];
const ARRANGEMENTS: Arrangement[] = ["all", ...PLANES, "3d"];
const KEPT = 3;

/** Volumes of the last cases, and of the one that comes next: asked for once. */
const volumes = new Map<string, Promise<Volume>>();
const details = new Map<string, Promise<Case>>();

function volumeOf(layer: Layer, signal?: AbortSignal): Promise<Volume> {
  let found = volumes.get(layer.url);
  if (!found) {
    found = bytes(layer.url, signal).then(parseNifti);
    volumes.set(layer.url, found);
    found.catch(() => volumes.delete(layer.url));
  }
  return found;
}

function detailsOf(id: string): Promise<Case> {
  let found = details.get(id);
  if (!found) {
    found = getCase(id);
    details.set(id, found);
    found.catch(() => details.delete(id));
  }
  return found;
}

/** On whose grid slices are counted. */
const gridLayer = (of: Case): Layer | undefined => of.layers.find((layer) => layer.kind === "image") ?? of.layers[0];

/** Forgets a case's volumes that are of files which have changed since. */
function forgetChanged(of: Case): void {
  const now = new Set(of.layers.map((layer) => layer.url));
  for (const url of volumes.keys()) if (url.startsWith(`${ofCase(of.id)}/`) && !now.has(url)) volumes.delete(url);
}

/** Forgets all but the volumes of these cases. */
function forgetOthers(ids: string[]): void {
  const starts = ids.map((id) => `${ofCase(id)}/`);
  for (const url of volumes.keys()) if (!starts.some((start) => url.startsWith(start))) volumes.delete(url);
  for (const id of details.keys()) if (!ids.includes(id)) details.delete(id);
}

// What one chose for a case holds for the next; shown: what was switched on or off, by the layer; windows: by the layer.
const choice: { shown: Map<string, boolean>; style: Look["style"]; opacity: number; windows: Map<string, [number, number]>; organ: string | null; arranged: Arrangement } = {
  shown: new Map(), style: "outline", opacity: 0.5, windows: new Map(), organ: null, arranged: "all",
};
const recent: string[] = [];

/** Of a case: as one chose, else the label that is judged and the prediction; the reference where there is neither. */
const isShownIn = (of: Case, { name }: Layer): boolean => {
  const first = of.layers.some((layer) => layer.name === "prediction") ? "prediction" : "reference";
  return choice.shown.get(name) ?? [of.reviewed_layer ?? first, "prediction"].includes(name);
};

export function casePage(where: Where): Page {
  const id = where.parts[0]!;
  const began = performance.now();
  const hash = hashOfCase(id);
  const abort = new AbortController();
  let stage: Stage | null = null;
  let painter: GlPainter | PngPainter | null = null;
  let turning: Turning | null = null;
  let of3d = "";
  let found: Case | null = null;
  let stopped = false;
  let hidden = false;
  const holder = el("div", { class: "holder" }, el("p", { class: "wait" }, "Loading the case …"));
  const side = el("aside", { class: "side-panel" });
  const root = el("div", { class: "case-page" }, holder, side);
  const drawnBy = webGl();
  const webgl = drawnBy !== "none";
  void begin().catch((error: unknown) => {
    if (stopped) return;
    complain(error);
    fill(holder, el("p", { class: "wait" }, error instanceof Error ? error.message : String(error)));
  });

  async function begin(): Promise<void> {
    details.delete(id); // decisions may have changed
    found = await detailsOf(id);
    if (stopped) return;
    forgetChanged(found);
    recent.splice(0, recent.length, ...[id, ...recent.filter((one) => one !== id)].slice(0, KEPT));
    if (found.reviewed_layer) choice.shown.delete(found.reviewed_layer); // what is judged is seen first, whatever one hid before
    for (const layer of found.layers) if (!layer.is_ct) choice.windows.delete(layer.name); // each scan has intensities of its own
    panel();
    const frame = await prepare(found);
    if (stopped) return;
    const look: Look = { scan: null, low: 0, high: 1, style: choice.style, opacity: choice.opacity, shown: [] };
    stage = new Stage(frame, painter!, look);
    stage.onmove = () => tellPosition();
    stage.onwindow = () => setWindow([look.low, look.high]);
    setLook();
    fill(holder, stage.root);
    stage.arrange(choice.arranged === "3d" && !webgl ? "all" : choice.arranged);
    if (choice.organ && found.centroids[choice.organ]) toOrgan(choice.organ);
    else toDoubtful();
    if (painter instanceof GlPainter) {
      await Promise.all(shownLayers().map(upload));
      if (stopped) return;
    }
    stage.refresh();
    await new Promise(requestAnimationFrame);
    await new Promise(requestAnimationFrame);
    if (painter instanceof PngPainter) await painter.settled();
    root.dataset.ready = String(Math.round(performance.now() - began));
    third();
    void ahead();
  }

  /** The painter, and the grid that the slices are counted on. */
  async function prepare(of: Case): Promise<Frame> {
    const [z, y, x] = of.shape_zyx;
    const [sz, sy, sx] = of.spacing_mm;
    if (webgl) {
      const first = gridLayer(of);
      if (!first) throw new Error("This case has nothing to show.");
      for (const layer of shownLayers()) volumeOf(layer, abort.signal).catch(() => {}); // said where it is waited for
      const frame = frameOf(await volumeOf(first, abort.signal));
      if (stopped) return frame;
      try {
        painter = new GlPainter(frame);
        painter.onlost = () => void fill(holder, el("p", { class: "wait" }, "The graphics card was taken away. Slices are drawn again as soon as it is back; or load the page again."));
        painter.onrestored = () => void (stopped || window.dispatchEvent(new Event("hashchange")));
        await upload(first);
        return frame;
      } catch (error) {
        complain(error);
      }
    }
    painter = new PngPainter(of.id, [x, y, z], () => choice.organ);
    painter.keep(of.layers);
    const affine = [[sx, 0, 0, 0], [0, sy, 0, 0], [0, 0, sz, 0]];
    return { dims: [x, y, z], spacing: [sx, sy, sz], toStored: affine, affine };
  }

  async function upload(layer: Layer): Promise<void> {
    if (!(painter instanceof GlPainter) || painter.has(layer)) return;
    try {
      const volume = await volumeOf(layer, abort.signal);
      if (stopped || !(painter instanceof GlPainter) || painter.has(layer)) return;
      painter.add(layer, volume);
      stage?.refresh();
    } catch (error) {
      if (!stopped) complain(error);
    }
  }

  const layersToShow = (): Layer[] => found!.layers.filter((layer) => layer.kind !== "image" || layer.name !== "scan");
  const isShown = (layer: Layer): boolean => isShownIn(found!, layer);
  const scanLayer = (): Layer | undefined => {
    const images = found!.layers.filter((layer) => layer.kind === "image");
    return images.find((layer) => layer.name !== "scan" && isShown(layer)) ?? images[0];
  };
  const windowOf = (layer: Layer | undefined): [number, number] => (layer && (choice.windows.get(layer.name) ?? layer.window)) ?? [0, 1];
  const presetsOf = (layer: Layer | undefined) => (layer?.is_ct ? info.windows : (layer?.windows ?? []));
  const shownLayers = (): Layer[] => [...(scanLayer() ? [scanLayer()!] : []), ...found!.layers.filter((layer) => layer.kind !== "image" && isShown(layer))];

  function coloursOf(layer: Layer): Map<number, Rgb> {
    if (layer.name === "difference") return new Map(DIFFERENCE.map(([value, , rgb]) => [value, rgb]));
    return new Map(info.organs.filter((organ) => !choice.organ || organ.name === choice.organ).map((organ) => [organ.value, rgbOf(organ.colour)]));
  }

  function setLook(): void {
    if (!stage || !found) return;
    const layers = shownLayers().filter((layer) => layer.kind !== "image");
    const order = (layer: Layer) => (layer.kind === "map" ? 0 : layer.name === "difference" ? 1 : layer.name === "reference" ? 2 : layer.name === found!.reviewed_layer ? 4 : 3);
    const several = layers.filter((layer) => layer.kind === "label" && layer.name !== "difference").length > 1;
    const shown: Shown[] = [...layers].sort((a, b) => order(a) - order(b)).map((layer) => ({
      name: layer.name,
      kind: layer.kind === "map" ? "map" : "label",
      colours: coloursOf(layer),
      wide: several && layer.name === "reference",
      filled: layer.name === "difference",
    }));
    const [low, high] = windowOf(scanLayer());
    Object.assign(stage.look, { scan: scanLayer()?.name ?? null, low, high, style: choice.style, opacity: choice.opacity, shown: hidden ? [] : shown });
    stage.refresh();
    void third();
  }

  function toggle(layer: Layer): void {
    if (isShown(layer)) choice.shown.set(layer.name, false);
    else {
      if (layer.kind !== "label") for (const other of found!.layers) if (other.kind === layer.kind) choice.shown.delete(other.name);
      choice.shown.set(layer.name, true);
      void upload(layer);
    }
    setLook();
    panelLayers();
    panelWindow();
  }

  // ---- 3D

  async function third(): Promise<void> {
    if (!stage || !found || stopped) return;
    const wanted = stage.arrangement === "3d" || (stage.arrangement === "all" && drawnBy === "card");
    const layer = found.layers.find((one) => [found!.reviewed_layer, "prediction"].includes(one.name) && isShown(one)) ?? found.layers.find((one) => one.kind === "label" && one.name !== "difference" && !one.name.startsWith("round") && isShown(one));
    if (!webgl) return void fill(stage.third, el("p", { class: "wait" }, "3D needs WebGL2, which this browser does not offer here."));
    if (!wanted && !turning) return void fill(stage.third, el("button", { class: "button", onclick: () => arrange("3d") }, "Show in 3D ", key("X")));
    if (!layer) return void fill(stage.third, el("p", { class: "wait" }, "Choose a label to see it in 3D."));
    const wish = `${layer.url} ${choice.organ} ${hidden}`;
    if (wish === of3d) return;
    of3d = wish;
    const { Turning: Made, shrink } = await import("./volume3d");
    const solid = shrink(await volumeOf(layer, abort.signal), stage.frame);
    if (stopped || of3d !== wish) return;
    if (!turning) {
      const canvas = el("canvas", {});
      fill(stage.third, canvas, el("span", { class: "caption" }));
      turning = new Made(canvas, [0, 0, 0]);
    }
    stage.third.querySelector(".caption")!.textContent = layer.title;
    await turning.show(solid, hidden ? new Map() : coloursOf(layer));
    root.dataset.third = "ready";
  }

  function arrange(how: Arrangement): void {
    if (!stage) return;
    if (how === "3d" && !webgl) return toast("3D needs WebGL2, which this browser does not offer here.");
    choice.arranged = how;
    stage.arrange(how);
    void third().catch(complain);
    panelView();
  }

  // ---- where to look

  function toDoubtful(): void {
    if (!stage || !found) return;
    const organ = found.organs.find((one) => one.name === choice.organ);
    const { axial, coronal, sagittal } = organ?.doubtful ?? found.doubtful;
    stage.moveTo([sagittal, coronal, axial]);
  }

  function toOrgan(name: string): void {
    const at = found?.centroids[name];
    if (at && stage) stage.moveTo([at[2], at[1], at[0]].map(Math.round) as Triple);
  }

  function chooseOrgan(name: string | null): void {
    choice.organ = name;
    if (name) toOrgan(name);
    setLook();
    panelOrgans();
    panelDecision();
  }

  function stepOrgan(by: number): void {
    const names: (string | null)[] = [null, ...info.organs.map((organ) => organ.name)];
    chooseOrgan(names[(names.indexOf(choice.organ) + by + names.length) % names.length]!);
  }

  async function toCase(by: number): Promise<void> {
    try {
      await listed();
      if (stopped) return;
      const at = list.ids.indexOf(id);
      const next = list.ids[at + by];
      if (at >= 0 && next !== undefined) go(hashOfCase(next));
      else toast(by > 0 ? "This was the last case of the list." : "This is the first case of the list.");
    } catch (error) {
      complain(error);
    }
  }

  /** The next case of the list is fetched while this one is looked at. */
  async function ahead(): Promise<void> {
    await listed().catch(() => {}); // said where it is asked for
    if (stopped) return;
    const at = list.ids.indexOf(id);
    const next = list.ids[at + 1];
    forgetOthers([...recent, ...(next === undefined ? [] : [next])]);
    if (at < 0 || next === undefined) return;
    try {
      const of = await detailsOf(next);
      if (!webgl || stopped) return;
      for (const layer of of.layers) if (layer.name === "scan" || (layer.kind !== "image" && isShownIn(of, layer))) await volumeOf(layer);
      root.dataset.ahead = next;
    } catch {
      // it will be said when the case is opened
    }
  }

  // ---- the panel at the side

  const title = el("div", { class: "title" });
  const layersBox = el("div", { class: "layers" });
  const windowBox = el("div", { class: "window" });
  const viewBox = el("div", { class: "view-box" });
  const organsBox = el("div", { class: "organs" });
  const decisionBox = el("div", { class: "decision" });
  const position = el("div", { class: "position" });

  function panel(): void {
    const of = found!;
    fill(
      title,
      el("a", { href: `#/${origin}`, class: "back", title: "Back (Backspace)" }, origin.startsWith("review") ? "← Review" : "← Cases"),
      el("h1", { title: of.id }, of.id),
      el("p", { class: "note" }, `${words(of.role)} · ${[...of.shape_zyx].reverse().join(" × ")} · ${[...of.spacing_mm].reverse().map((mm) => mm.toFixed(2)).join(" × ")} mm · ${of.orientation}`),
    );
    fill(side, title, decisionBox, layersBox, windowBox, viewBox, organsBox, position);
    panelDecision();
    panelLayers();
    panelWindow();
    panelView();
    panelOrgans();
  }

  function panelDecision(): void {
    const of = found!;
    if (!of.label_sha256) return void fill(decisionBox, el("p", { class: "note" }, "This case has no label to be judged."));
    const organ = of.organs.find((one) => one.name === choice.organ);
    const state = organ ?? of;
    fill(
      decisionBox,
      el("h2", {}, organ ? words(organ.name) : "The whole label", " ", badge(state.decision, state.stale)),
      el("div", { class: "buttons" }, ...VERDICTS.map((one) =>
        el("button", { class: `button ${one.decision}`, title: one.says, "aria-pressed": state.decision === one.decision ? "true" : "false", onclick: () => void decide(one.decision) }, one.says.split(":")[0]!, " ", key(one.key.toUpperCase())),
      )),
    );
  }

  function panelLayers(): void {
    const shown = layersToShow();
    fill(
      layersBox,
      el("h2", {}, "Layers ", el("small", {}, "hide while held ", key("H"))),
      ...shown.map((layer, index) =>
        el("label", { class: "layer" },
          el("input", { type: "checkbox", checked: isShown(layer), onchange: () => toggle(layer) }),
          el("span", {}, layer.title),
          el("span", { class: "grow" }),
          index < 9 ? key(String(index + 1)) : null),
      ),
      found!.layers.some((layer) => layer.kind === "map" && isShown(layer)) ? el("div", { class: "legend" }, el("span", {}, "feedback: negative", el("i", { class: "ramp" }), "positive")) : null,
      isShownName("difference") ? el("div", { class: "legend" }, ...DIFFERENCE.map(([, text, rgb]) => el("span", {}, swatch(`rgb(${rgb.join()})`), text))) : null,
    );
  }
  const isShownName = (name: string): boolean => found!.layers.some((layer) => layer.name === name && isShown(layer));

  function panelWindow(): void {
    const scan = scanLayer();
    const [low, high] = windowOf(scan);
    const digits = high - low < 10 ? Math.min(12, Math.max(2, 1 - Math.floor(Math.log10(high - low)))) : 0;
    const presets = presetsOf(scan).map((one) =>
      el("button", { class: "chip", "aria-pressed": one.low === low && one.high === high ? "true" : "false", title: scan?.is_ct ? `${one.low} to ${one.high} HU` : one.name, onclick: () => setWindow([one.low, one.high]) }, one.name),
    );
    fill(
      windowBox,
      el("h2", {}, "Window ", el("small", {}, `${low.toFixed(digits)} to ${high.toFixed(digits)}${scan?.is_ct ? " HU" : ""} `, key("W"))),
      el("div", { class: "chips" }, ...presets),
    );
  }

  function panelView(): void {
    const chip = (text: string, on: boolean, press: () => void, hint: string) => el("button", { class: "chip", "aria-pressed": on ? "true" : "false", title: hint, onclick: press }, text);
    const range = el("input", { type: "range", min: "0", max: "1", step: "0.05", value: String(choice.opacity), "aria-label": "Opacity", oninput: (event: Event) => setOpacity(Number((event.target as HTMLInputElement).value)) });
    fill(
      viewBox,
      el("h2", {}, "View ", el("small", {}, key("X"))),
      el("div", { class: "chips" }, ...ARRANGEMENTS.map((how) => chip(how === "all" ? "three planes" : how === "3d" ? "3D" : how, choice.arranged === how, () => arrange(how), "X"))),
      el("div", { class: "chips" }, chip("outline", choice.style === "outline", () => setStyle("outline"), "O"), chip("fill", choice.style === "fill", () => setStyle("fill"), "O"), key("O"),
        el("span", { class: "grow" }), el("label", { class: "opacity", title: "Opacity ([ and ])" }, range)),
    );
  }

  function panelOrgans(): void {
    const of = found!;
    const of_name = (name: string) => of.organs.find((one) => one.name === name);
    fill(
      organsBox,
      el("h2", {}, "Organs ", el("small", {}, key(","), " ", key("."))),
      el("table", {}, el("tbody", {}, ...info.organs.map((organ) => {
        const one = of_name(organ.name);
        const odd = one?.missing ? "missing" : one?.outlier ? "unusual volume" : "";
        return el(
          "tr",
          { class: choice.organ === organ.name ? "chosen" : "", title: odd || undefined, onclick: () => chooseOrgan(choice.organ === organ.name ? null : organ.name) },
          el("td", {}, el("span", { class: "organ" }, swatch(organ.colour), words(organ.name))),
          el("td", { class: "number" }, one?.score === null || one?.score === undefined ? "" : fixed(one.score, 3)),
          el("td", { class: `number ${odd ? "odd" : ""}` }, odd === "missing" ? "missing" : volume(one?.volume_ml)),
          el("td", { class: "mark" }, one?.decision && one.decision !== of.decision ? badge(one.decision, one.stale) : null),
        );
      }))),
      info.corrections && el("div", { class: "buttons" },
        el("button", { class: "button small", onclick: () => void exportIt() }, "Export for correction"),
        el("button", { class: "button small", onclick: () => bringBack() }, of.corrected ? "Correct again …" : "Bring back a correction …")),
    );
  }

  function tellPosition(): void {
    if (!stage) return;
    const [x, y, z] = stage.position;
    fill(position, `Slices: axial ${z + 1}, coronal ${y + 1}, sagittal ${x + 1}`, stage.zoom > 1 ? ` · zoom ${stage.zoom.toFixed(1)}` : "");
  }

  // ---- changes

  function setWindow(window: [number, number]): void {
    const scan = scanLayer();
    if (scan) choice.windows.set(scan.name, window);
    setLook();
    panelWindow();
  }

  function nextWindow(): void {
    const presets = presetsOf(scanLayer());
    if (!presets.length) return;
    const at = presets.findIndex((one) => one.low === stage?.look.low && one.high === stage.look.high);
    const next = presets[(at + 1) % presets.length]!;
    setWindow([next.low, next.high]);
  }

  const setStyle = (style: Look["style"]) => ((choice.style = style), setLook(), panelView());
  const setOpacity = (opacity: number) => {
    choice.opacity = Math.min(1, Math.max(0, Math.round(opacity * 20) / 20));
    setLook();
    const range = viewBox.querySelector<HTMLInputElement>("input[type=range]");
    if (range) range.value = String(choice.opacity);
  };

  let busy = false;
  /** What changes something waits for nothing: it is done alone, until its outcome is shown, or not at all. */
  async function alone(work: () => Promise<unknown>): Promise<void> {
    if (busy) return;
    busy = true;
    try {
      await work();
    } catch (error) {
      complain(error);
    } finally {
      busy = false;
    }
  }

  const decide = (decision: Decision): Promise<void> => alone(async () => {
    if (!found?.label_sha256) return toast("This case has no label to be judged.");
    const seconds = Math.round((performance.now() - began) / 100) / 10;
    try {
      await unlost(post("/api/decisions", { case: id, organ: choice.organ, decision, label_sha256: found.label_sha256, decisions: found.decisions, seconds, audit: false }));
      toast(`${choice.organ ? words(choice.organ) : id}: ${VERDICTS.find((one) => one.decision === decision)!.short}`);
    } catch (error) {
      complain(error);
    }
    await renew();
  });

  const undo = (): Promise<void> => alone(async () => {
    const line = await taken({ case: id }).catch((error: unknown) => {
      if (!(error instanceof Refused && error.status === 412)) throw error;
      return confirm(`${error.message} Take it back?`) ? taken({}) : null; // of a case that is not in sight
    });
    if (!line) return;
    toast(`Undone: ${line.organ ? `${words(line.organ)} of ` : ""}${line.case}`);
    await renew();
  });
  const taken = (wish: object) => unlost(post<{ case: string; organ: string | null }>("/api/decisions/undo", wish));

  /** What is known of the case now, and layers whose files have changed since they were drawn. */
  async function renew(): Promise<void> {
    try {
      details.delete(id);
      const before = gridLayer(found!)?.url;
      found = await detailsOf(id);
      if (stopped) return;
      if (gridLayer(found)?.url !== before) return void window.dispatchEvent(new Event("hashchange")); // the grid may be another
      forgetChanged(found);
      painter?.keep(found.layers);
      panelDecision();
      panelLayers();
      panelOrgans();
      setLook();
      await Promise.all(shownLayers().map(upload));
    } catch (error) {
      complain(error);
    }
  }

  const exportIt = (): Promise<void> => alone(async () => showFolder((await post<{ folder: string }>("/api/export", { cases: [id] })).folder, 1));

  function bringBack(): void {
    const file = el("input", { type: "file", accept: ".nii,.gz", required: true });
    const plane = el("select", {}, el("option", { value: "" }, "the whole label"), ...PLANES.map((one, axis) => el("option", { value: String(axis) }, `some ${one} slices`)));
    const slices = el("input", { type: "text", placeholder: "12, 13, 20–24", "aria-label": "Slices" });
    slices.hidden = true;
    plane.addEventListener("change", () => (slices.hidden = plane.value === ""));
    const said = el("p", { class: "note" }, "The corrected label map, on the scan’s own grid. Where only some slices were corrected, training learns from those alone.");
    const shown = el(
      "dialog",
      { class: "said" },
      el("form", { onsubmit: (event: Event) => void send(event) },
        el("h2", {}, "Bring back a correction"),
        said,
        el("p", {}, file),
        el("p", { class: "row" }, el("label", {}, "Corrected: ", plane), slices),
        el("div", { class: "buttons" }, el("button", { class: "button primary" }, "Take it"), el("button", { class: "button", type: "button", onclick: () => shown.close() }, "Close"))),
    );
    async function send(event: Event): Promise<void> {
      event.preventDefault();
      const form = new FormData();
      form.set("case", id);
      form.set("label", file.files![0]!);
      try {
        if (plane.value !== "") {
          form.set("axis", plane.value);
          form.set("indices", slicesOf(slices.value).join(","));
        }
        const response = await fetch("/api/corrections", { method: "POST", body: form, credentials: "same-origin" });
        const answer = (await response.json()) as { error?: string };
        if (!response.ok) throw new Error(answer.error ?? `The server answered ${response.status}.`);
        shown.close();
        toast("The correction was taken.");
        await renew();
      } catch (error) {
        said.textContent = error instanceof Error ? error.message : String(error);
        said.classList.add("bad");
      }
    }
    shown.addEventListener("close", () => shown.remove());
    document.body.append(shown);
    shown.showModal();
  }

  const hide = (on: boolean) => {
    hidden = on;
    setLook();
  };
  const digits: Binding[] = Array.from({ length: 9 }, (_, index) => ({
    keys: [String(index + 1)], shown: index === 0 ? "1 … 9" : "", says: "Show or hide a layer", press: () => {
      const layer = found ? layersToShow()[index] : undefined;
      if (layer) toggle(layer);
    },
  }));
  const moved = (plane: (stage: Stage) => void) => () => stage && plane(stage);
  setBindings([
    { keys: ["arrowup"], shown: "↑ or ↓", says: "Slice by slice in the framed plane (the wheel too)", press: moved((it) => it.step(1)) },
    { keys: ["arrowdown"], shown: "", says: "", press: moved((it) => it.step(-1)) },
    { keys: ["pageup"], shown: "PageUp or PageDown", says: "Ten slices", press: moved((it) => it.step(10)) },
    { keys: ["pagedown"], shown: "", says: "", press: moved((it) => it.step(-10)) },
    { keys: ["v"], shown: "V", says: "Frame the next plane", press: moved((it) => ((it.active = PLANES[(PLANES.indexOf(it.active) + 1) % 3] as Plane), it.arrangement !== "all" && it.arrangement !== "3d" ? arrange(it.active) : it.refresh())) },
    { keys: ["x"], shown: "X", says: "Three planes, one of them, 3D", press: () => arrange(ARRANGEMENTS[(ARRANGEMENTS.indexOf(choice.arranged) + 1) % ARRANGEMENTS.length]!) },
    { keys: ["d"], shown: "D", says: "To the most doubtful place", press: toDoubtful },
    { keys: ["."], shown: ", or .", says: "Organ by organ, all again", press: () => stepOrgan(1) },
    { keys: [","], shown: "", says: "", press: () => stepOrgan(-1) },
    ...digits,
    { keys: ["h", "space"], shown: "H", says: "Hide what is laid over while held", press: () => hide(true), release: () => hide(false) },
    { keys: ["o"], shown: "O", says: "Outline or fill", press: () => setStyle(choice.style === "outline" ? "fill" : "outline") },
    { keys: ["]"], shown: "[ or ]", says: "Opacity", press: () => setOpacity(choice.opacity + 0.1) },
    { keys: ["["], shown: "", says: "", press: () => setOpacity(choice.opacity - 0.1) },
    { keys: ["w"], shown: "W", says: "Next window (or drag with the right button)", press: nextWindow },
    { keys: ["+", "="], shown: "+ or -", says: "Zoom about the cross-hair (Ctrl and wheel)", press: moved((it) => (it.zoomBy(1.25), tellPosition())) },
    { keys: ["-"], shown: "", says: "", press: moved((it) => (it.zoomBy(0.8), tellPosition())) },
    { keys: ["arrowleft", "arrowright"], shown: "← or →", says: "Turn in 3D", press: (event) => turning?.turn(event.key === "ArrowLeft" ? -15 : 15, 0) },
    ...VERDICTS.map((one): Binding => ({ keys: [one.key], shown: one.key.toUpperCase(), says: one.says, once: true, press: () => void decide(one.decision) })),
    { keys: ["z"], shown: "Z", says: "Undo the last decision", once: true, press: () => void undo() },
    { keys: ["n"], shown: "N", says: "Next case of the list", once: true, press: () => void toCase(1) },
    { keys: ["b"], shown: "B", says: "Case before", once: true, press: () => void toCase(-1) },
    ...(info.corrections ? [
      { keys: ["e"], shown: "E", says: "Export for correction", once: true, press: () => void exportIt() },
      { keys: ["i"], shown: "I", says: "Bring back a correction", once: true, press: () => found && bringBack() },
    ] : []),
    { keys: ["backspace", "escape"], shown: "Backspace", says: "Back to the list, or to the review", press: () => go(origin) },
  ]);
  listed().catch(() => {}); // before anything is decided here
  return {
    root,
    whole: true,
    dispose: () => {
      stopped = true;
      if (!location.hash.includes(hash)) abort.abort();
      turning?.dispose();
      stage?.dispose();
      if (!stage) painter?.dispose();
    },
  };
}

function rgbOf(colour: string): Rgb {
  const value = Number.parseInt(colour.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

/** Slices as people count them, from 1: "12, 13, 20-24". */
function slicesOf(text: string): number[] {
  const found = new Set<number>();
  for (const part of text.split(",").map((one) => one.trim()).filter(Boolean)) {
    const range = /^(\d+)(?:\s*[-–]\s*(\d+))?$/.exec(part);
    if (!range) throw new Error(`“${part}” is no slice and no range of slices.`);
    const [first, last] = [Number(range[1]), Number(range[2] ?? range[1])];
    if (first < 1 || last < first || last - first > 5000) throw new Error(`“${part}” is no range of slices.`);
    for (let slice = first; slice <= last; slice++) found.add(slice - 1);
  }
  if (!found.size) throw new Error("Say which slices were corrected.");
  return [...found].sort((a, b) => a - b);
}
