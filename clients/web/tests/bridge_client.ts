// Runs in the browser: calls the page's own client and tells what it hears. See bridge.ts.
import { fromJsonString, toJson } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";

import { chat } from "../src/api/clients";
import { failureOf } from "../src/api/failure";
import {
  CancelTurnRequestSchema,
  CancelTurnResponseSchema,
  ChatEventSchema,
  ResumeChatRequestSchema,
  StreamChatRequestSchema,
} from "../src/gen/weft/v1/chat_pb";

export interface Call {
  call: string;
  method: "StreamChat" | "ResumeChat" | "CancelTurn";
  /** JSON. */
  request: string;
  headers: Record<string, string>;
}

declare global {
  interface Window {
    /** Made by bridge.ts. */
    tell(answer: object): Promise<void>;
    begin(call: Call): void;
    abort(call: string): void;
  }
}

const running = new Map<string, AbortController>();

window.begin = ({ call, method, request, headers }) => {
  const aborting = new AbortController();
  running.set(call, aborting);
  const options = { signal: aborting.signal, headers };
  void answer(call, method, request, options)
    .then(
      () => window.tell({ call, end: true }),
      (error: unknown) => {
        const code = Code[ConnectError.from(error).code] ?? "";
        return window.tell({ call, failure: failureOf(error).reason, code });
      },
    )
    .finally(() => running.delete(call));
};

window.abort = (call) => running.get(call)?.abort();

async function answer(
  call: string,
  method: Call["method"],
  request: string,
  options: { signal: AbortSignal; headers: Record<string, string> },
): Promise<void> {
  if (method === "CancelTurn") {
    const response = await chat.cancelTurn(fromJsonString(CancelTurnRequestSchema, request), options);
    return window.tell({ call, event: toJson(CancelTurnResponseSchema, response) });
  }
  const events =
    method === "StreamChat"
      ? chat.streamChat(fromJsonString(StreamChatRequestSchema, request), options)
      : chat.resumeChat(fromJsonString(ResumeChatRequestSchema, request), options);
  for await (const event of events) {
    void window.tell({ call, event: toJson(ChatEventSchema, event) });
  }
}
