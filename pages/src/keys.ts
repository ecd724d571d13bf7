// Keys: the page's own first, before any canvas sees them. Pages say what their keys do, and `?` shows it.
export interface Binding {
  /** As in KeyboardEvent.key, lower case; `shift+` before it where the key is pressed with shift. */
  keys: string[];
  /** How the help names it; the first of `keys` if absent. */
  shown?: string;
  says: string;
  /** Not again while the key is held down. */
  once?: boolean;
  press: (event: KeyboardEvent) => void;
  release?: () => void;
}

let bindings: Binding[] = [];
let common: Binding[] = [];
const held = new Map<string, Binding>();

export const setCommon = (those: Binding[]): void => void (common = those);
export const setBindings = (those: Binding[]): void => {
  for (const binding of held.values()) binding.release?.();
  held.clear();
  bindings = those;
};
export const allBindings = (): { page: Binding[]; common: Binding[] } => ({ page: bindings, common });

function nameOf(event: KeyboardEvent): string {
  const name = event.key === " " ? "space" : event.key.toLowerCase();
  return event.shiftKey && (name.length === 1 ? /[a-z]/.test(name) : name !== "shift") ? `shift+${name}` : name;
}

const typing = (target: EventTarget | null): boolean =>
  target instanceof HTMLElement && (target.matches("input:not([type=checkbox]):not([type=range]):not([type=radio]), textarea, select") || target.isContentEditable);

function down(event: KeyboardEvent): void {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const name = nameOf(event);
  if (typing(event.target)) {
    if (name === "escape") (event.target as HTMLElement).blur();
    return;
  }
  if (document.querySelector("dialog[open]") && name !== "?") return;
  const onControl = event.target instanceof HTMLElement && event.target.matches("button, a, input, summary, label, [tabindex='0']");
  if (onControl && (name === "enter" || name === "space")) return; // they press what has the focus
  const found = bindings.find((one) => one.keys.includes(name)) ?? common.find((one) => one.keys.includes(name));
  if (!found) {
    if (event.target instanceof HTMLCanvasElement) event.stopImmediatePropagation(); // NiiVue binds letters of its own
    return;
  }
  if (onControl && event.target instanceof HTMLInputElement && event.target.type === "range" && name.startsWith("arrow")) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  if (found.once && event.repeat) return;
  if (found.release) {
    if (event.repeat || held.has(event.code)) return;
    held.set(event.code, found);
  }
  found.press(event);
}

function up(event: KeyboardEvent): void {
  const found = held.get(event.code);
  if (!found) return;
  held.delete(event.code);
  event.stopImmediatePropagation();
  found.release?.();
}

export function listen(): void {
  window.addEventListener("keydown", down, true);
  window.addEventListener("keyup", up, true);
  // A button that was clicked does not keep the focus, or the next Space or Enter would press it again: on another case.
  window.addEventListener("click", (event) => {
    if (event.detail > 0 && event.target instanceof Element) event.target.closest<HTMLElement>("button")?.blur();
  });
  window.addEventListener("blur", () => {
    for (const binding of held.values()) binding.release?.();
    held.clear();
  });
}
