// Node as a caller: does the requests that peer_doors.py writes to its standard input, a line each, one after the other.
import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import http from "node:http";

const PATIENCE = 20_000;
const agent = new http.Agent({ keepAlive: true });

function withHttp(ask) {
  return new Promise((resolve, reject) => {
    const [, authority, path] = ask.url.match(/^http:\/\/([^/]+)(.*)$/);
    const [host, port] = authority.split(":");
    const headers = { Host: ask.host || authority };
    const options = { agent, method: ask.method, path, headers, timeout: PATIENCE };
    if (ask.socket) {
      options.socketPath = ask.socket;
    } else if (ask.proxy) {
      [options.host, options.port] = ask.proxy.split(":");
      options.path = ask.url;
    } else {
      Object.assign(options, { host, port });
    }
    if (ask.framing !== "chunked" && ask.body) headers["Content-Length"] = ask.body.length;
    if (ask.framing === "expect") headers.Expect = "100-continue";
    const request = http.request(options, (reply) => {
      const pieces = [];
      reply.on("data", (piece) => pieces.push(piece));
      reply.on("error", reject);
      reply.on("end", () => {
        const told = (name) => reply.headers[name] ?? "";
        resolve({ status: reply.statusCode, body: Buffer.concat(pieces), told, reused: request.reusedSocket ? "yes" : "no" });
      });
    });
    request.on("error", reject);
    request.on("timeout", () => request.destroy(new Error("nothing comes")));
    if (ask.framing === "expect") {
      request.on("continue", () => request.end(ask.body));
      request.flushHeaders();
    } else if (ask.framing === "chunked") {
      const middle = ask.body.length >> 1;
      request.write(ask.body.subarray(0, middle));
      request.end(ask.body.subarray(middle));
    } else {
      request.end(ask.body);
    }
  });
}

async function withFetch(ask) {
  const options = { method: ask.method, redirect: ask.follow ? "follow" : "manual", signal: AbortSignal.timeout(PATIENCE) };
  if (ask.host) options.headers = { Host: ask.host };
  if (ask.framing === "chunked") {
    options.body = new Blob([ask.body]).stream();
    options.duplex = "half";
  } else if (ask.body) {
    options.body = ask.body;
  }
  const reply = await fetch(ask.url, options);
  const told = (name) => reply.headers.get(name) ?? "";
  return { status: reply.status, body: Buffer.from(await reply.arrayBuffer()), told, reused: "" };
}

for await (const line of createInterface({ input: process.stdin })) {
  const [program, name, method, url, host, socket, proxy, size, framing, follow] = line.split("\t");
  const body = size && Buffer.alloc(Number(size), "countersign ");
  const ask = { method, url, host, socket, proxy, body: body || undefined, framing, follow: follow === "follow" };
  const fields = [];
  try {
    let found;
    for (let left = name === "again" ? 3 : 1; left > 0; left--) found = await (program === "fetch" ? withFetch : withHttp)(ask);
    const told = ["location", "content-length", "x-countersign-error"].map(found.told);
    const digest = createHash("sha256").update(found.body).digest("hex");
    fields.push(found.status, digest, ...told, found.reused, found.body.subarray(0, 1000).toString("base64"));
  } catch (error) {
    fields.push(0, `${error} ${error.cause ?? ""}`.replace(/\s+/g, " "));
  }
  console.log(fields.join("\t"));
}
agent.destroy();
