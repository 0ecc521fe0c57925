import { newId } from "./id";

/**
 * The W3C `traceparent` of a call. Its trace id is the request id where that has the form of one, as
 * `newId` makes it: so a question, and what is read of its answer after a lost connection, are one trace.
 */
export function traceparent(requestId: string): string {
  const traceId = /^[0-9a-f]{32}$/.test(requestId) ? requestId : newId();
  return `00-${traceId}-${newId().slice(16)}-01`;
}
