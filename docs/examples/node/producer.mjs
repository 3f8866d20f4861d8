// States that an order is to be cancelled: one XADD of one JSON object.
//
//     npm ci && REDIS_URL=redis://localhost:6379/0 node producer.mjs shop-1 1001
//
// After an error, state it again: the same connection and order is the same record, and nothing is sent twice.
import { createClient } from "redis";

const [connectionId, orderId] = process.argv.slice(2);
const job = {
  connection_id: connectionId,
  order_id: orderId,
  priority: "urgent",
  requested_by: "oms",
  requested_at: new Date().toISOString(),
};

const redis = createClient({
  url: process.env.REDIS_URL,
  socket: { connectTimeout: 5000, socketTimeout: 5000, reconnectStrategy: false },
});
redis.on("error", () => {}); // the call that fails tells of it
await redis.connect();
const entry = await redis.xAdd("cancellations:inbox", "*", { job: JSON.stringify(job) });
await redis.close();
console.log(`order ${orderId} is on the inbox as entry ${entry}`);
