// What the server says, and how it is asked. Everything is JSON but for pictures and volumes.

export interface Organ { value: number; name: string; colour: string }
export interface Window { name: string; low: number; high: number }
export type Decision = "accept" | "set_aside" | "label" | "unsure";
export type Planes = { axial: number; coronal: number; sagittal: number };

export interface Info {
  kind: "run" | "folder";
  name: string;
  organs: Organ[];
  /** For channels of CT. */
  windows: Window[];
  /** Channels and windows of the review's strips. */
  looks: string[];
  pages: { run: boolean; cases: boolean; review: boolean; report: boolean };
  label_reviewed: string;
  reviewer: string;
  roles: string[];
  doubts: boolean;
  /** Whether cases are handed out and taken back: of runs. */
  corrections: boolean;
}

export interface Progress {
  state: "running" | "stopped" | "finished" | "not_begun";
  step: number;
  total: number | null;
  seconds: number | null;
  seconds_left: number | null;
  rows: Record<string, number | string | null>[];
  rounds: Record<string, unknown>[];
  notices: string[];
  log: string[];
  report: boolean;
}

export interface CaseRow {
  id: string;
  role: string;
  score: number | null;
  doubt: number | null;
  volume_ml: number | null;
  fragments: number | null;
  missing: string[];
  outliers: string[];
  torn: string[];
  /** Why the label does not lie on its scan, or nothing. */
  misfit: string;
  decision: Decision | "mixed" | null;
  stale: boolean;
  corrected: boolean;
}

export interface CaseList { total: number; measured: number; rows: CaseRow[] }

export interface OrganOfCase {
  name: string;
  score: number | null;
  volume_ml: number | null;
  fragments: number | null;
  outlier: boolean;
  missing: boolean;
  doubtful: Planes | null;
  decision: Decision | null;
  stale: boolean;
}

export interface Layer {
  name: string;
  kind: "image" | "label" | "map";
  title: string;
  /** With the version of its files: a file that changes has another address. */
  url: string;
  /** Of images: what is black and white as it opens, windows of its own, and whether its values are HU. */
  window?: [number, number];
  windows?: Window[];
  is_ct?: boolean;
}

export interface Case {
  id: string;
  role: string;
  shape_zyx: [number, number, number];
  spacing_mm: [number, number, number];
  organs: OrganOfCase[];
  layers: Layer[];
  reviewed_layer: string | null;
  doubtful: Planes;
  centroids: Record<string, [number, number, number]>;
  doubt: number | null;
  label_sha256: string | null;
  /** The number of the last decision on any case: later ones are not known of. */
  decisions: number;
  decision: Decision | "mixed" | null;
  stale: boolean;
  corrected: boolean;
  orientation: string;
}

export interface Audit { share: number; looked_at: number; right: number; low: number | null; high: number | null }

export interface Queue {
  queue: string[];
  audits: string[];
  done: number;
  left: number;
  seconds_per_case: number | null;
  minutes_left: number | null;
  audit: Audit;
}

export interface Judged {
  case: string;
  organ: string | null;
  decision: Decision;
  label_sha256: string | null;
  decisions: number;
  seconds: number;
  audit: boolean;
}

export class Refused extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

async function answer(response: Response): Promise<Response> {
  if (response.ok) return response;
  let text = `The server answered ${response.status}.`;
  try {
    text = ((await response.json()) as { error?: string }).error ?? text;
  } catch {
    // no JSON: the number has to do
  }
  throw new Refused(response.status, text);
}

async function ask(url: string, options: RequestInit = {}): Promise<Response> {
  try {
    return await answer(await fetch(url, { credentials: "same-origin", ...options }));
  } catch (error) {
    if (error instanceof Refused || (error instanceof DOMException && error.name === "AbortError")) throw error;
    throw new Error("The server does not answer. Is `semiseg view` still running?");
  }
}

export async function get<T>(url: string, signal?: AbortSignal): Promise<T> {
  return (await (await ask(url, signal ? { signal } : {})).json()) as T;
}

export async function bytes(url: string, signal?: AbortSignal): Promise<ArrayBuffer> {
  return (await ask(url, signal ? { signal } : {})).arrayBuffer();
}

export async function post<T>(url: string, body: unknown = {}): Promise<T> {
  const headers = { "Content-Type": "application/json" };
  const keepalive = url.startsWith("/api/decisions"); // sent though the tab is closed
  return (await (await ask(url, { method: "POST", headers, keepalive, body: JSON.stringify(body) })).json()) as T;
}

let unsent = 0;

/** Who closes the tab before this is done is asked first. */
export async function unlost<T>(work: Promise<T>): Promise<T> {
  unsent++;
  try {
    return await work;
  } finally {
    unsent--;
  }
}

window.addEventListener("beforeunload", (event) => unsent && event.preventDefault());

export function query(values: Record<string, string | number | boolean | null | undefined>): string {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (value === null || value === undefined || value === "" || value === false) continue;
    found.set(name, value === true ? "1" : String(value));
  }
  return found.toString();
}

/** The address of something of a case. */
export const ofCase = (id: string, what = ""): string => `/api/cases/${encodeURIComponent(id)}${what ? `/${what}` : ""}`;

export const getCase = (id: string): Promise<Case> => get<Case>(ofCase(id));
