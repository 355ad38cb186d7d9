// Unpacks the Chromium of the package @sparticuz/chromium into ./chromium, for machines that have none on PATH.
import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { brotliDecompressSync } from "node:zlib";

const packed = new URL("node_modules/@sparticuz/chromium/bin/", import.meta.url);
const target = new URL("chromium/", import.meta.url);
rmSync(target, { recursive: true, force: true });
mkdirSync(target);
for (const name of ["al2023", "fonts", "swiftshader"]) {
  const tar = brotliDecompressSync(readFileSync(new URL(`${name}.tar.br`, packed)));
  execFileSync("tar", ["-x", "-C", target.pathname], { input: tar });
}
// the package's fonts.conf names folders of AWS Lambda
writeFileSync(
  new URL("fonts.conf", target),
  `<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>${target.pathname}fonts</dir><cachedir>${target.pathname}fonts-cache</cachedir></fontconfig>
`,
);
const binary = new URL("chromium", target);
writeFileSync(binary, brotliDecompressSync(readFileSync(new URL("chromium.br", packed))));
chmodSync(binary, 0o755);
