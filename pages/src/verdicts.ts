// The four decisions: their keys, names and colours, the same on every page.
import type { Decision } from "./api";
import { el } from "./dom";

export const VERDICTS: { decision: Decision; key: string; says: string; short: string }[] = [
  { decision: "accept", key: "a", says: "Accept: learn from this label", short: "accepted" },
  { decision: "set_aside", key: "s", says: "Set aside: do not learn from it", short: "set aside" },
  { decision: "label", key: "l", says: "Label this one: worth an expert’s time", short: "to be labelled" },
  { decision: "unsure", key: "u", says: "Unsure: for somebody else", short: "unsure" },
];
const SHORT: Record<string, string> = { ...Object.fromEntries(VERDICTS.map((one) => [one.decision, one.short])), mixed: "by organ" };

export function badge(decision: string | null, stale: boolean): HTMLElement | null {
  if (!decision) return null;
  return el(
    "span",
    { class: `badge ${decision}${stale ? " stale" : ""}`, title: stale ? "The label has changed since" : undefined },
    SHORT[decision] ?? decision,
    stale ? " · label changed" : null,
  );
}
