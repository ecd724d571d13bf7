// NIfTI-1 as the server sends it (uncompressed, little endian), and its voxel axes in the body's.

export type Triple = [number, number, number];
/** Row-major 3 × 4: index (x, y, z) to what it maps to. */
export type Affine = number[][];

export interface Volume {
  /** Stored axes, the first runs fastest. */
  dims: Triple;
  voxels: Int16Array | Uint8Array | Float32Array;
  slope: number;
  inter: number;
  affine: Affine;
}

/** The canonical axes of a volume: x to the left→right, y back→front, z foot→head, as the server counts slices. */
export interface Frame {
  dims: Triple;
  spacing: Triple;
  /** Canonical index to stored index. */
  toStored: Affine;
  /** Canonical index to millimetres. */
  affine: Affine;
}

const KINDS: Record<number, { bytes: number; view: (buffer: ArrayBuffer, at: number, n: number) => Volume["voxels"] }> = {
  2: { bytes: 1, view: (buffer, at, n) => new Uint8Array(buffer, at, n) },
  4: { bytes: 2, view: (buffer, at, n) => new Int16Array(buffer, at, n) },
  16: { bytes: 4, view: (buffer, at, n) => new Float32Array(buffer, at, n) },
};

export function parseNifti(buffer: ArrayBuffer): Volume {
  const header = new DataView(buffer);
  if (buffer.byteLength < 352 || header.getInt32(0, true) !== 348) throw new Error("This is not a NIfTI file.");
  const kind = KINDS[header.getInt16(70, true)];
  if (!kind) throw new Error(`Voxels of NIfTI type ${header.getInt16(70, true)} are not drawn.`);
  const dims: Triple = [0, 1, 2].map((axis) => Math.max(1, header.getInt16(42 + 2 * axis, true))) as Triple;
  const count = dims[0] * dims[1] * dims[2];
  let at = header.getFloat32(108, true);
  if (at + count * kind.bytes > buffer.byteLength) throw new Error("The file is shorter than its header says.");
  if (at % kind.bytes) {
    buffer = buffer.slice(at);
    at = 0;
  }
  const slope = header.getFloat32(112, true);
  const inter = header.getFloat32(116, true);
  const scaled = Number.isFinite(slope) && slope !== 0;
  return {
    dims,
    voxels: kind.view(buffer, at, count),
    slope: scaled ? slope : 1,
    inter: scaled && Number.isFinite(inter) ? inter : 0,
    affine: affineOf(header),
  };
}

function affineOf(header: DataView): Affine {
  const float = (at: number) => header.getFloat32(at, true);
  if (header.getInt16(254, true) > 0) {
    return [0, 1, 2].map((row) => [0, 1, 2, 3].map((column) => float(280 + 16 * row + 4 * column)));
  }
  const spacing = [80, 84, 88].map((at) => float(at) || 1);
  if (header.getInt16(252, true) <= 0) return spacing.map((mm, row) => [0, 1, 2, 3].map((c) => (c === row ? mm : 0)));
  const [b, c, d] = [float(256), float(260), float(264)];
  const a = Math.sqrt(Math.max(0, 1 - b * b - c * c - d * d));
  const turn = [
    [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
    [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
    [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
  ];
  const scale = [spacing[0]!, spacing[1]!, spacing[2]! * (float(76) < 0 ? -1 : 1)];
  return turn.map((row, r) => [...row.map((value, column) => value * scale[column]!), float(268 + 4 * r)]);
}

/** The order and turns of the stored axes that come closest to the body's. */
export function frameOf(volume: Pick<Volume, "dims" | "affine">): Frame {
  const cosine = (row: number, axis: number) => {
    const length = Math.hypot(...[0, 1, 2].map((r) => volume.affine[r]![axis]!)) || 1;
    return volume.affine[row]![axis]! / length;
  };
  const orders: Triple[] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
  const fit = (order: Triple) => order.reduce((sum, axis, row) => sum + cosine(row, axis) ** 2, 0);
  const order = orders.reduce((best, one) => (fit(one) > fit(best) + 1e-9 ? one : best));
  const toStored: Affine = [0, 1, 2].map(() => [0, 0, 0, 0]);
  order.forEach((axis, row) => {
    const turned = cosine(row, axis) < 0;
    toStored[axis]![row] = turned ? -1 : 1;
    toStored[axis]![3] = turned ? volume.dims[axis]! - 1 : 0;
  });
  const affine = compose(volume.affine, toStored);
  return {
    dims: order.map((axis) => volume.dims[axis]!) as Triple,
    spacing: [0, 1, 2].map((axis) => Math.hypot(...[0, 1, 2].map((row) => affine[row]![axis]!))) as Triple,
    toStored,
    affine,
  };
}

/** First `inner`, then `outer`. */
export function compose(outer: Affine, inner: Affine): Affine {
  return outer.map((row) =>
    [0, 1, 2, 3].map((c) => row[0]! * inner[0]![c]! + row[1]! * inner[1]![c]! + row[2]! * inner[2]![c]! + (c === 3 ? row[3]! : 0)),
  );
}

export function inverse(affine: Affine): Affine {
  const [[a, b, c, x], [d, e, f, y], [g, h, i, z]] = affine as [number[], number[], number[]] as [
    [number, number, number, number],
    [number, number, number, number],
    [number, number, number, number],
  ];
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const rows = [
    [e * i - f * h, c * h - b * i, b * f - c * e],
    [f * g - d * i, a * i - c * g, c * d - a * f],
    [d * h - e * g, b * g - a * h, a * e - b * d],
  ].map((row) => row.map((value) => value / det));
  return rows.map((row) => [...row, -(row[0]! * x + row[1]! * y + row[2]! * z)]);
}

/** The letters at both ends of a canonical axis, by where the affine says that it runs: [low end, high end]. */
export function ends(affine: Affine, axis: number): [string, string] {
  const along = [0, 1, 2].map((row) => affine[row]![axis]!);
  const row = along.reduce((best, value, index) => (Math.abs(value) > Math.abs(along[best]!) ? index : best), 0);
  const letters = [["L", "R"], ["P", "A"], ["I", "S"]][row] as [string, string];
  return along[row]! < 0 ? [letters[1], letters[0]] : letters;
}
