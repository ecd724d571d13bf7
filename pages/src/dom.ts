// Elements are made from text, never from markup: what a file is named cannot become part of the page.

export type Child = Node | string | number | null | undefined | false;
type Attributes = Record<string, unknown>;

export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: (Child | Child[])[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  dress(made, attributes);
  fill(made, ...children);
  return made;
}

export function svg(tag: string, attributes: Attributes = {}, ...children: Child[]): SVGElement {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  dress(made, attributes);
  fill(made, ...children);
  return made;
}

function dress(made: Element, attributes: Attributes): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value as EventListener);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "indeterminate") {
      (made as unknown as Record<string, unknown>)[name] = value;
    } else made.setAttribute(name, value === true ? "" : String(value));
  }
}

/** Puts children in the place of what an element held. */
export function fill<E extends Element>(parent: E, ...children: (Child | Child[])[]): E {
  const kept = children.flat().filter((child): child is Node | string | number => child !== null && child !== undefined && child !== false);
  parent.replaceChildren(...kept.map((child) => (child instanceof Node ? child : String(child))));
  return parent;
}

export function swatch(colour: string): HTMLElement {
  const made = el("i", { class: "swatch" });
  made.style.background = colour;
  return made;
}

export const key = (name: string): HTMLElement => el("kbd", {}, name);

export const words = (name: string): string => name.replaceAll("_", " ");

export function fixed(value: number | null | undefined, digits: number): string {
  return value === null || value === undefined || !Number.isFinite(value) ? "–" : value.toFixed(digits);
}

/** A volume with its unit: mm³ where mL would show little or nothing of it. */
export function volume(ml: number | null | undefined): string {
  if (ml === null || ml === undefined) return "–";
  if (ml === 0) return "0 mL";
  return ml < 0.1 ? `${(1000 * ml).toPrecision(3)} mm³` : `${fixed(ml, ml < 10 ? 2 : ml < 100 ? 1 : 0)} mL`;
}

export const count = (value: number): string => value.toLocaleString("en-GB");

export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
