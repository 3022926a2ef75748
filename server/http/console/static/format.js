// Numbers and times as people read them.

const DASH = "–";

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return DASH;
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size < 1e-3) return value.toExponential(1).replace("e-", "e−");
  return String(Number(value.toPrecision(digits)));
}

export function milliseconds(value) {
  if (value === null || value === undefined) return DASH;
  return value >= 1000 ? `${number(value / 1000)} s` : `${number(value)} ms`;
}

export function percent(share) {
  if (share === null || share === undefined) return DASH;
  if (!Number.isFinite(share)) return "∞";
  return `${number(100 * share, 2)}%`;
}

export function count(value) {
  return value === null || value === undefined ? DASH : value.toLocaleString("en");
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (value >= 1024 && power < units.length - 1) {
    value /= 1024;
    power += 1;
  }
  return `${number(value)} ${units[power]}`;
}

export function clock(ms) {
  return new Date(ms).toLocaleTimeString("en-GB");
}

export const PRECISIONS = {
  fp16: "FP16",
  bf16: "BF16",
  fp32: "FP32",
  half: "half",
  "fp16-in-fp32": "FP16 computed in FP32",
  "bf16-in-fp32": "BF16 computed in FP32",
  "fp16-emulated": "FP16 emulated",
  "bf16-emulated": "BF16 emulated",
};

export const precision = (name) => PRECISIONS[name] ?? name;
