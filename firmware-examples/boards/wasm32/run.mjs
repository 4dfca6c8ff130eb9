// Runs an example in node: node run.mjs EXAMPLE.wasm
import { readFileSync, writeFileSync, writeSync } from "node:fs";

const memory = () => new Uint8Array(instance.exports.memory.buffer);
const bytes = (at, length) => memory().slice(at, at + length);

const host = {
  log: (text, length) => writeSync(1, bytes(text, length)),
  save_file: (name, nameLength, head, headLength, body, bodyLength) =>
    writeFileSync(
      new TextDecoder().decode(bytes(name, nameLength)),
      Buffer.concat([bytes(head, headLength), bytes(body, bodyLength)]),
    ),
};

const { instance } = await WebAssembly.instantiate(readFileSync(process.argv[2]), { host });
process.exitCode = instance.exports.main();
