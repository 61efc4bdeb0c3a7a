// Where the records come from: lines of JSON in pieces of 64 KB, as from a file in S3. Made anew, the same every time.

const PIECE_BYTES = 64 * 1024;
const NOTE = "x".repeat(200);

export async function* pieces(records) {
  let lines = [];
  let bytes = 0;
  let seed = 1;
  for (let id = 0; id < records; id += 1) {
    seed = (seed * 48271) % 2147483647;
    const line = `{"id":${id},"customer":"customer-${seed % 5000}","amount":${(seed % 100000) / 100},"note":"${NOTE}"}\n`;
    lines.push(line);
    bytes += line.length;
    if (bytes >= PIECE_BYTES) {
      yield Buffer.from(lines.join(""));
      lines = [];
      bytes = 0;
    }
  }
  if (lines.length > 0) yield Buffer.from(lines.join(""));
}
