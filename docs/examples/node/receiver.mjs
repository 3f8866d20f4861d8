// Receives webhooks of the cancel worker, and acts on those about money. Trackstar's own are verified the same way.
//
//     npm ci && WEBHOOK_SECRET=whsec_... PORT=8090 node receiver.mjs
import { createServer } from "node:http";
import { Webhook } from "svix";

const MOST_BYTES = 20_000; // an event has 4,096 at most
const webhook = new Webhook(process.env.WEBHOOK_SECRET);
const seen = new Set(); // in an OMS: a unique column, written in the transaction that acts

const server = createServer(async (request, response) => {
  response.writeHead(await answer(request)).end();
});

async function answer(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size <= MOST_BYTES) chunks.push(chunk);
  }
  if (size > MOST_BYTES) return 413;
  let event;
  try {
    // The bytes as they came: to parse and write them anew would change them.
    event = webhook.verify(Buffer.concat(chunks).toString("utf8"), request.headers).data;
  } catch {
    return 400;
  }
  if (!seen.has(event.id)) act(event); // it comes at least once
  seen.add(event.id);
  return 204;
}

function act(event) {
  if (event.type === "refund.released") console.log(`pay back order ${event.order_id}`);
  if (event.type === "refund.refused") console.log(`do not pay back order ${event.order_id}`);
  if (event.type === "refund.recalled") console.log(`a person looks at order ${event.order_id}`);
}

server.listen(Number(process.env.PORT ?? 8090), "127.0.0.1", () => {
  console.log(`listening on ${server.address().port}`);
});
process.on("SIGTERM", () => server.close());
