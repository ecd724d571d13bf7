// The one place that knows NiiVue: organs as a volume that turns in 3D. It gets copies of at most 160 voxels an axis, for
// which any graphics card, or the lack of one, is fast enough.
import { Niivue, NVImage, SLICE_TYPE } from "@niivue/niivue";
import { compose, inverse, type Affine, type Frame, type Volume } from "./nifti";
import type { Rgb } from "./stage";

const LONGEST = 160;

export interface Solid {
  /** The voxels (x fastest) of a smaller canonical grid, and its grid. */
  voxels: Uint8Array;
  dims: [number, number, number];
  affine: Affine;
}

/** A label map on a smaller grid of the scan's frame; per coarse voxel the first organ among those that it holds. */
export function shrink(volume: Volume, frame: Frame): Solid {
  const step = Math.max(1, Math.ceil(Math.max(...frame.dims) / LONGEST));
  const dims = frame.dims.map((n) => Math.ceil(n / step)) as Solid["dims"];
  const voxels = new Uint8Array(dims[0] * dims[1] * dims[2]);
  // Steps through the stored voxels of one canonical voxel along each axis. The label's file may order them otherwise than
  // the scan's; both lie on one grid, so that the steps are whole.
  const toStored = compose(inverse(volume.affine), frame.affine).map((row) => row.map(Math.round));
  const strides = [1, volume.dims[0], volume.dims[0] * volume.dims[1]];
  const along = [0, 1, 2].map((axis) => [0, 1, 2].reduce((sum, stored) => sum + toStored[stored]![axis]! * strides[stored]!, 0));
  const first = [0, 1, 2].reduce((sum, stored) => sum + toStored[stored]![3]! * strides[stored]!, 0);
  const middle = Math.floor(step / 2);
  let at = 0;
  for (let z = 0; z < dims[2]; z++)
    for (let y = 0; y < dims[1]; y++)
      for (let x = 0; x < dims[0]; x++) {
        const place = [x, y, z].map((n, axis) => Math.min(n * step + middle, frame.dims[axis]! - 1));
        voxels[at++] = volume.voxels[first + place[0]! * along[0]! + place[1]! * along[1]! + place[2]! * along[2]!]!;
      }
  const coarse: Affine = [0, 1, 2].map((row) => [0, 1, 2, 3].map((column) => (column === row ? step : column === 3 ? middle : 0)));
  return { voxels, dims, affine: compose(frame.affine, coarse) };
}

function nifti(solid: Solid): ArrayBuffer {
  const buffer = new ArrayBuffer(352 + solid.voxels.length);
  const header = new DataView(buffer);
  header.setInt32(0, 348, true);
  header.setInt16(40, 3, true);
  solid.dims.forEach((n, axis) => header.setInt16(42 + 2 * axis, n, true));
  for (let axis = 3; axis < 7; axis++) header.setInt16(42 + 2 * axis, 1, true);
  header.setInt16(70, 2, true);
  header.setInt16(72, 8, true);
  header.setFloat32(76, 1, true);
  for (let axis = 0; axis < 3; axis++) {
    header.setFloat32(80 + 4 * axis, Math.hypot(...solid.affine.map((row) => row[axis]!)), true);
  }
  header.setFloat32(108, 352, true);
  header.setFloat32(112, 1, true);
  header.setInt16(254, 1, true);
  solid.affine.forEach((row, r) => row.forEach((value, column) => header.setFloat32(280 + 16 * r + 4 * column, value, true)));
  [0x6e, 0x2b, 0x31, 0].forEach((byte, index) => header.setUint8(344 + index, byte));
  new Uint8Array(buffer, 352).set(solid.voxels);
  return buffer;
}

export class Turning {
  private nv: Niivue;
  private attached: Promise<unknown>;

  constructor(readonly canvas: HTMLCanvasElement, background: Rgb) {
    this.nv = new Niivue({
      logLevel: "error",
      backColor: [...background.map((part) => part / 255), 1],
      dragAndDropEnabled: false,
      show3Dcrosshair: false,
      isOrientCube: true,
      isOrientationTextVisible: false,
      loadingText: "",
      crosshairWidth: 0,
      isAntiAlias: true,
    } as ConstructorParameters<typeof Niivue>[0]);
    this.attached = this.nv.attachToCanvas(canvas);
  }

  /** Shows a label map in the place of what was shown. */
  async show(solid: Solid, colours: Map<number, Rgb>): Promise<void> {
    await this.attached;
    const volume = await NVImage.new(nifti(solid), "label.nii", "gray", 1, null, NaN, NaN, true, 0.02, false, false, "", 0, undefined as never, NaN, NaN, false, null, 0, null);
    const table = [...colours.entries()].sort(([a], [b]) => a - b);
    const entries: [number, Rgb, number][] = [[0, [0, 0, 0], 0], ...table.map(([value, rgb]): [number, Rgb, number] => [value, rgb, 255])];
    volume.setColormapLabel({
      R: entries.map(([, rgb]) => rgb[0]),
      G: entries.map(([, rgb]) => rgb[1]),
      B: entries.map(([, rgb]) => rgb[2]),
      A: entries.map(([, , alpha]) => alpha),
      I: entries.map(([value]) => value),
      labels: entries.map(([value]) => String(value)),
    } as unknown as Parameters<typeof volume.setColormapLabel>[0]);
    while (this.nv.volumes.length) this.nv.removeVolumeByIndex(0);
    this.nv.addVolume(volume);
    this.nv.opts.showLegend = false;
    this.nv.setSliceType(SLICE_TYPE.RENDER);
    this.nv.setScale(1.4);
    this.nv.setRenderAzimuthElevation(180 + 20, 12); // from the front, a little from the patient's left
    await this.nv.setVolumeRenderIllumination(0.6);
  }

  turn(azimuth: number, elevation: number): void {
    this.nv.setRenderAzimuthElevation(this.nv.scene.renderAzimuth + azimuth, this.nv.scene.renderElevation + elevation);
  }

  dispose(): void {
    this.nv.gl?.getExtension("WEBGL_lose_context")?.loseContext();
    this.canvas.remove();
  }
}
