// Slices by WebGL2, straight from the voxels as they are stored: the window, outlines, opacity and what is hidden are
// numbers of a drawing, so that none of them touches a volume again.
import type { Layer } from "./api";
import { el } from "./dom";
import { compose, inverse, type Affine, type Frame, type Volume } from "./nifti";
import { AXES, type Look, type Painter, type Shown, type View } from "./stage";

const NEGATIVE = [255, 112, 67];
const POSITIVE = [64, 190, 255];
const MOST_LABELS = 6;

/** What draws here: nothing, the processor, or a graphics card. */
export function webGl(): "none" | "software" | "card" {
  const gl = document.createElement("canvas").getContext("webgl2");
  if (!gl) return "none";
  const named = gl.getExtension("WEBGL_debug_renderer_info");
  const renderer = String(gl.getParameter(named ? named.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return /swiftshader|llvmpipe|software/i.test(renderer) ? "software" : "card";
}

interface Texture {
  url: string;
  texture: WebGLTexture;
  /** Canonical index of the scan to stored index of this volume. */
  matrix: Affine;
  dims: Int32Array;
  slope: number;
  inter: number;
  limit: number;
  float: boolean;
}

export class GlPainter implements Painter {
  readonly element: HTMLCanvasElement;
  private gl: WebGL2RenderingContext;
  private programs = new Map<string, { program: WebGLProgram; at: (name: string) => WebGLUniformLocation | null }>();
  private textures = new Map<string, Texture>();
  private palette: WebGLTexture;
  private disposed = false;
  /** The graphics card was taken away, as some do after sleep, and given back: all that it held is gone. */
  onlost: () => void = () => {};
  onrestored: () => void = () => {};

  constructor(private frame: Frame) {
    this.element = el("canvas", { class: "painted" });
    const gl = this.element.getContext("webgl2", { antialias: false, alpha: false, powerPreference: "high-performance" });
    if (!gl) throw new Error("This browser has no WebGL2.");
    if (frame.dims.some((n) => n > gl.getParameter(gl.MAX_3D_TEXTURE_SIZE))) throw new Error("The scan is larger than a texture may be.");
    this.gl = gl;
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    this.palette = gl.createTexture()!;
    this.element.addEventListener("webglcontextlost", (event) => {
      if (this.disposed) return;
      event.preventDefault(); // or it would not come back
      this.onlost();
    });
    this.element.addEventListener("webglcontextrestored", () => !this.disposed && this.onrestored());
  }

  has({ name, url }: Pick<Layer, "name" | "url">): boolean {
    return this.textures.get(name)?.url === url;
  }

  /** Forgets what is of none of these layers as their files are now. */
  keep(layers: Layer[]): void {
    for (const [name, { texture, url }] of this.textures) {
      if (layers.some((layer) => layer.url === url)) continue;
      this.gl.deleteTexture(texture);
      this.textures.delete(name);
    }
  }

  add({ name, url }: Pick<Layer, "name" | "url">, volume: Volume): void {
    const { gl } = this;
    const texture = gl.createTexture()!;
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_3D, texture);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_3D, filter, gl.NEAREST);
    const [x, y, z] = volume.dims;
    const voxels = volume.voxels;
    const [inside, format, type] =
      voxels instanceof Int16Array
        ? [gl.R16I, gl.RED_INTEGER, gl.SHORT]
        : voxels instanceof Uint8Array
          ? [gl.R8UI, gl.RED_INTEGER, gl.UNSIGNED_BYTE]
          : [gl.R32F, gl.RED, gl.FLOAT];
    gl.texImage3D(gl.TEXTURE_3D, 0, inside, x, y, z, 0, format, type, voxels);
    this.textures.set(name, {
      url,
      texture,
      matrix: compose(inverse(volume.affine), this.frame.affine),
      dims: Int32Array.from(volume.dims),
      slope: volume.slope,
      inter: volume.inter,
      limit: voxels instanceof Float32Array ? limitOf(voxels) : 1,
      float: voxels instanceof Float32Array,
    });
  }

  paint(views: View[], look: Look): void {
    const { gl } = this;
    const ratio = window.devicePixelRatio || 1;
    const box = this.element.getBoundingClientRect();
    const [width, height] = [Math.max(1, Math.round(box.width * ratio)), Math.max(1, Math.round(box.height * ratio))];
    if (this.element.width !== width || this.element.height !== height) Object.assign(this.element, { width, height });
    gl.viewport(0, 0, width, height);
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(0, 0, 0, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    const scan = look.scan === null ? undefined : this.textures.get(look.scan);
    const labels = look.shown.filter((one) => one.kind === "label" && this.textures.has(one.name)).slice(-MOST_LABELS);
    const map = look.shown.find((one) => one.kind === "map" && this.textures.has(one.name));
    const used = this.program(scan ? (scan.float ? "float" : "int") : "none", labels.length, map !== undefined);
    gl.useProgram(used.program);
    const bound = this.bind(used.at, look, scan, labels, map);
    gl.enable(gl.SCISSOR_TEST);
    for (const view of views) {
      const { pane } = view;
      const { across, down, through } = AXES[view.plane];
      gl.scissor(Math.round(pane.left * ratio), height - Math.round((pane.top + pane.height) * ratio), Math.round(pane.width * ratio), Math.round(pane.height * ratio));
      gl.uniform2f(used.at("size"), this.frame.dims[across]!, this.frame.dims[down]!);
      for (const [name, { matrix }] of bound) {
        const column = (axis: number) => matrix.map((row) => row[axis]!) as [number, number, number];
        gl.uniform3f(used.at(`${name}_first`), ...(matrix.map((row) => row[through]! * view.index + row[3]!) as [number, number, number]));
        gl.uniform3f(used.at(`${name}_across`), ...column(across));
        gl.uniform3f(used.at(`${name}_down`), ...column(down));
      }
      gl.uniform4f(used.at("place"), view.left * ratio, height - view.top * ratio, view.across * ratio, view.down * ratio);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
    }
  }

  private bind(at: (name: string) => WebGLUniformLocation | null, look: Look, scan: Texture | undefined, labels: Shown[], map: Shown | undefined): [string, Texture][] {
    const { gl } = this;
    const ratio = window.devicePixelRatio || 1;
    let unit = 0;
    const bound: [string, Texture][] = [];
    const volume = (name: string, found: Texture) => {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_3D, found.texture);
      gl.uniform1i(at(name), unit++);
      gl.uniform3iv(at(`${name}_dims`), found.dims);
      bound.push([name, found]);
    };
    if (scan) {
      volume("scan", scan);
      gl.uniform2f(at("scale"), scan.slope, scan.inter);
    }
    gl.uniform2f(at("grey"), look.low, look.high);
    labels.forEach((one, number) => volume(`label${number}`, this.textures.get(one.name)!));
    if (map) {
      const found = this.textures.get(map.name)!;
      volume("heat", found);
      gl.uniform1f(at("limit"), found.limit);
    }
    const colours = new Uint8Array(256 * 4 * Math.max(1, labels.length));
    labels.forEach((one, row) => one.colours.forEach((rgb, value) => colours.set([...rgb, 255], 4 * (256 * row + value))));
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, this.palette);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, 256, Math.max(1, labels.length), 0, gl.RGBA, gl.UNSIGNED_BYTE, colours);
    gl.uniform1i(at("palette"), unit);
    // x: the line's width in pixels, y: its opacity, z: the opacity inside
    labels.forEach((one, number) => {
      const fill = one.filled || (look.style === "fill" && !one.wide);
      gl.uniform3f(at(`style${number}`), (one.wide ? 4 : 1.8) * ratio, one.filled ? look.opacity : one.wide ? 0.5 : 1, fill ? look.opacity : 0);
    });
    gl.uniform1f(at("line"), look.style === "fill" ? Math.min(1, look.opacity + 0.3) : 1);
    return bound;
  }

  private program(scan: "int" | "float" | "none", labels: number, map: boolean) {
    const name = `${scan} ${labels} ${map}`;
    let made = this.programs.get(name);
    if (!made) {
      const program = link(this.gl, fragment(scan, labels, map));
      const known = new Map<string, WebGLUniformLocation | null>();
      const at = (uniform: string) => {
        if (!known.has(uniform)) known.set(uniform, this.gl.getUniformLocation(program, uniform));
        return known.get(uniform)!;
      };
      made = { program, at };
      this.programs.set(name, made);
    }
    return made;
  }

  dispose(): void {
    this.disposed = true;
    for (const { texture } of this.textures.values()) this.gl.deleteTexture(texture);
    this.textures.clear();
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }
}

/** The size above which a tenth of the total absolute value lies, as reports have it. */
function limitOf(values: Float32Array): number {
  const stride = Math.max(1, Math.floor(values.length / 2e6));
  const sizes = new Float32Array(Math.floor(values.length / stride));
  let sum = 0;
  for (let i = 0; i < sizes.length; i++) sum += sizes[i] = Math.abs(values[i * stride]!);
  sizes.sort();
  if (!(sum > 0)) return 1;
  let above = 0;
  for (let i = sizes.length - 1; i >= 0; i--) if ((above += sizes[i]!) >= 0.1 * sum) return sizes[i]!;
  return 1;
}

const VERTEX = `#version 300 es
void main() { gl_Position = vec4(gl_VertexID == 1 ? 3. : -1., gl_VertexID == 2 ? 3. : -1., 0., 1.); }`;

function fragment(scan: "int" | "float" | "none", labels: number, map: boolean): string {
  const each = (make: (number: number) => string) => Array.from({ length: labels }, (_, number) => make(number)).join("\n");
  const colour = ([r, g, b]: number[]) => `vec3(${(r! / 255).toFixed(4)}, ${(g! / 255).toFixed(4)}, ${(b! / 255).toFixed(4)})`;
  const volume = (kind: string, name: string) =>
    `uniform ${kind} ${name}; uniform vec3 ${name}_first, ${name}_across, ${name}_down; uniform ivec3 ${name}_dims;`;
  return `#version 300 es
precision highp float; precision highp int; precision highp isampler3D; precision highp usampler3D; precision highp sampler3D;
out vec4 result;
uniform vec2 size, grey, scale; uniform vec4 place; uniform float line, limit;
uniform sampler2D palette;
${scan === "none" ? "" : volume(scan === "int" ? "isampler3D" : "sampler3D", "scan")}
${each((n) => `${volume("usampler3D", `label${n}`)} uniform vec3 style${n};`)}
${map ? volume("sampler3D", "heat") : ""}
// A place on the slice is counted in voxels from the middle of the first one. An index is that of a stored voxel.
${
  scan === "none"
    ? ""
    : `float value(vec2 at) { // between the middles of four voxels
  vec2 low = clamp(floor(at), vec2(0.), size - 1.), high = clamp(floor(at) + 1., vec2(0.), size - 1.), part = at - floor(at);
  vec3 first = scan_first + .5;
  vec3 left = scan_across * low.x, right = scan_across * high.x, top = scan_down * low.y, bottom = scan_down * high.y;
  float a = float(texelFetch(scan, ivec3(first + left + top), 0).r), b = float(texelFetch(scan, ivec3(first + right + top), 0).r);
  float c = float(texelFetch(scan, ivec3(first + left + bottom), 0).r), d = float(texelFetch(scan, ivec3(first + right + bottom), 0).r);
  return mix(mix(a, b, part.x), mix(c, d, part.x), part.y) * scale.x + scale.y;
}`
}
${each(
  (n) => `uint near${n}(vec3 place) {
  ivec3 index = ivec3(floor(place));
  if (any(lessThan(index, ivec3(0))) || any(greaterThanEqual(index, label${n}_dims))) return 0u;
  return texelFetch(label${n}, index, 0).r;
}
uint class${n}(vec2 at) { // the value that most of the four voxels around have, by their nearness: lines run as contours do
  vec2 low = floor(at), part = at - low;
  vec3 corner = label${n}_first + .5 + label${n}_across * low.x + label${n}_down * low.y;
  uint a = near${n}(corner), b = near${n}(corner + label${n}_across);
  uint c = near${n}(corner + label${n}_down), d = near${n}(corner + label${n}_across + label${n}_down);
  if (a == b && a == c && a == d) return a;
  vec4 weight = vec4((1. - part.x) * (1. - part.y), part.x * (1. - part.y), (1. - part.x) * part.y, part.x * part.y);
  uvec4 four = uvec4(a, b, c, d);
  vec4 sums = vec4(dot(weight, vec4(equal(four, uvec4(a)))), dot(weight, vec4(equal(four, uvec4(b)))),
    dot(weight, vec4(equal(four, uvec4(c)))), dot(weight, vec4(equal(four, uvec4(d)))));
  uint best = a; float most = sums.x;
  if (sums.y > most + 1e-6) { most = sums.y; best = b; }
  if (sums.z > most + 1e-6) { most = sums.z; best = c; }
  if (sums.w > most + 1e-6) best = d;
  return best;
}
vec3 over${n}(vec3 under, vec2 at, vec2 pixel) {
  uint here = class${n}(at);
  if (here == 0u) return under;
  vec4 colour = texelFetch(palette, ivec2(int(min(here, 255u)), ${n}), 0);
  if (colour.a == 0.) return under;
  vec2 step = pixel * style${n}.x;
  bool edge = class${n}(at + vec2(step.x, 0.)) != here || class${n}(at - vec2(step.x, 0.)) != here
    || class${n}(at + vec2(0., step.y)) != here || class${n}(at - vec2(0., step.y)) != here;
  return mix(under, colour.rgb, edge ? style${n}.y * line : style${n}.z);
}`,
)}
void main() {
  vec2 along = vec2(gl_FragCoord.x - place.x, place.y - gl_FragCoord.y) / place.zw;
  if (any(lessThan(along, vec2(0.))) || any(greaterThanEqual(along, size))) { result = vec4(0., 0., 0., 1.); return; }
  vec2 at = size - along - .5;
  vec2 pixel = 1. / place.zw;
  vec3 colour = vec3(${scan === "none" ? "0." : "clamp((value(at) - grey.x) / max(grey.y - grey.x, 1e-30), 0., 1.)"});
  ${
    map
      ? `ivec3 index = ivec3(floor(heat_first + .5 + heat_across * at.x + heat_down * at.y));
  if (all(greaterThanEqual(index, ivec3(0))) && all(lessThan(index, heat_dims))) {
    float share = clamp(texelFetch(heat, index, 0).r / limit, -1., 1.);
    colour = mix(colour, share < 0. ? ${colour(NEGATIVE)} : ${colour(POSITIVE)}, .85 * pow(abs(share), .8));
  }`
      : ""
  }
  ${each((n) => `colour = over${n}(colour, at, pixel);`)}
  result = vec4(colour, 1.);
}`;
}

function link(gl: WebGL2RenderingContext, source: string): WebGLProgram {
  const program = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, source]] as const) {
    const shader = gl.createShader(kind)!;
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    gl.deleteShader(shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) {
    const shaders = gl.getAttachedShaders(program) ?? [];
    throw new Error(`The graphics driver refused a shader: ${shaders.map((shader) => gl.getShaderInfoLog(shader)).join(" ")}`);
  }
  return program;
}
