// A mesh of its own for the page's tests: the real contract over gRPC-Web, with what a real mesh
// cannot be made to show at will: cut streams, slow answers, every kind of error.
import { readFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { create, toJson, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";

import { ErrorInfoSchema } from "../src/gen/google/rpc/error_details_pb";
import {
  ChatEventSchema,
  ChatService,
  StoredMessageSchema,
  type StoredMessage,
  type StreamChatRequest,
} from "../src/gen/weft/v1/chat_pb";
import type { ReferenceSchema } from "../src/gen/weft/v1/common_pb";
import { KnowledgeService, UploadResponseSchema } from "../src/gen/weft/v1/knowledge_pb";
import { ModelService } from "../src/gen/weft/v1/models_pb";

const PAGE = fileURLToPath(new URL("../../../servers/weftd/edge/page/", import.meta.url));
/** What the edge sends with the page. */
export const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";
const TYPES: Record<string, string> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".css": "text/css",
  ".svg": "image/svg+xml",
};

export function weftError(code: Code, reason: string, message: string): ConnectError {
  const info = { desc: ErrorInfoSchema, value: { reason, domain: "weft" } };
  return new ConnectError(message, code, undefined, [info]);
}

type Event = MessageInitShape<typeof ChatEventSchema>;
/** How an answer goes: events in order; "cut" breaks the connection, "wait" waits for `proceed`. */
export type Script = (Event | "cut" | "wait" | ConnectError)[];

interface FakeTurn {
  request: StreamChatRequest;
  script: Script;
  /** How much of the script has been passed: a cut happens once. */
  passed: number;
  events: Event[];
  stopped: boolean;
  status: string;
  rating: string;
}

interface FakeDocument {
  documentId: string;
  name: string;
  bytes: number;
  status: string;
}

export class FakeMesh {
  readonly turns = new Map<string, FakeTurn>();
  readonly conversations = new Map<string, { title: string; requestIds: string[] }>();
  readonly datasets = new Map<string, { name: string; status: string; documents: FakeDocument[]; progress: number }>();
  /** What was asked of the mesh, in order: "StreamChat", "ResumeChat 3", "CancelTurn", … */
  readonly calls: string[] = [];
  /** The answers to come, by question; others get `answer`. */
  readonly scripts = new Map<string, Script>();
  answer: Script = [{ type: "delta", content: "Hello." }, { type: "refs" }, { type: "done" }];
  /** Null: the mesh hands out no tokens, and takes this one only. */
  token: string | null = null;
  devTokens = true;
  tokensGiven = 0;
  private waiting: (() => void)[] = [];
  private server: Server | undefined;

  async start(): Promise<string> {
    const rpc = connectNodeAdapter({ routes: (router) => this.routes(router), grpc: false, connect: false });
    this.server = createServer((request, response) => void this.serve(request, response, rpc));
    await new Promise<void>((resolve) => this.server?.listen(0, "127.0.0.1", resolve));
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.proceed();
    this.server?.closeAllConnections();
    await new Promise((resolve) => this.server?.close(resolve));
  }

  /** Lets every answer go on that is at a "wait". */
  proceed(): void {
    for (const go of this.waiting.splice(0)) go();
  }

  private async serve(
    request: IncomingMessage,
    response: ServerResponse,
    rpc: (request: IncomingMessage, response: ServerResponse) => void,
  ): Promise<void> {
    const path = (request.url ?? "/").split("?")[0] ?? "/";
    const allowed = this.token === null || request.headers.authorization === `Bearer ${this.token}`;
    if (path === "/api/v1/dev/token") {
      this.tokensGiven += 1;
      response.writeHead(this.devTokens ? 200 : 404, { "content-type": "application/json" });
      const expires = new Date(Date.now() + 3_600_000).toISOString();
      response.end(this.devTokens ? JSON.stringify({ token: this.token ?? "dev", expires_at: expires }) : "{}");
    } else if (path === "/api/v1/knowledge/upload") {
      await this.upload(request, response);
    } else if (path.startsWith("/weft.v1.")) {
      if (allowed) rpc(request, response);
      else response.writeHead(401, { "grpc-status": "16", "content-type": "application/grpc-web+proto" }).end();
    } else {
      const file = path === "/" ? "index.html" : path;
      try {
        const body = await readFile(join(PAGE, file));
        response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "", "content-security-policy": POLICY });
        response.end(body);
      } catch {
        response.writeHead(404).end();
      }
    }
  }

  private async upload(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const body: Buffer[] = [];
    for await (const piece of request) body.push(piece as Buffer);
    const text = Buffer.concat(body).toString("utf8");
    const datasetId = /name="dataset_id"\r\n\r\n([^\r]*)/.exec(text)?.[1] ?? "";
    const [, name = "", content = ""] = /filename="([^"]*)"\r\n[^\r]*\r\n\r\n([^]*?)\r\n--/.exec(text) ?? [];
    const dataset = this.datasets.get(datasetId) ?? { name: "", status: "pending", documents: [], progress: 0 };
    this.datasets.set(datasetId, dataset);
    const known = dataset.documents.find((one) => one.name === name);
    const refused = content.length === 0;
    if (!known && !refused) {
      dataset.documents.push({
        documentId: `doc_${dataset.documents.length}`,
        name,
        bytes: content.length,
        status: "stored",
      });
    }
    const status = refused ? "refused" : known ? "duplicate" : "stored";
    const documentId = refused ? "" : (known ?? dataset.documents.at(-1))?.documentId;
    const error = refused ? { error: { reason: "DOCUMENT_EMPTY", message: "The file is empty." } } : {};
    const answer = create(UploadResponseSchema, {
      datasetId,
      documents: [{ documentId: documentId ?? "", name, status, ...error }],
    });
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify(toJson(UploadResponseSchema, answer, { useProtoFieldName: true })));
  }

  private routes(router: ConnectRouter): void {
    const mesh = this;
    router.service(ChatService, {
      async *streamChat(request, context) {
        mesh.calls.push("StreamChat");
        if (!mesh.turns.has(request.requestId)) mesh.begin(request);
        yield* mesh.play(request.requestId, request.afterSeq, context.signal);
      },
      async *resumeChat(request, context) {
        mesh.calls.push(`ResumeChat ${request.afterSeq}`);
        if (!mesh.turns.has(request.requestId))
          throw weftError(Code.NotFound, "TURN_NOT_FOUND", "There is no such turn.");
        yield* mesh.play(request.requestId, request.afterSeq, context.signal);
      },
      cancelTurn(request) {
        mesh.calls.push("CancelTurn");
        const turn = mesh.turns.get(request.requestId);
        if (!turn) throw weftError(Code.NotFound, "TURN_NOT_FOUND", "There is no such turn.");
        turn.stopped = true;
        turn.status = "cancelled";
        mesh.proceed();
        return { status: "cancelled" };
      },
      listConversations() {
        const all = [...mesh.conversations].reverse();
        return {
          conversations: all.map(([conversationId, { title }]) => ({
            conversationId,
            title,
            updatedAt: timestampNow(),
          })),
        };
      },
      getConversation({ conversationId }) {
        const known = mesh.conversations.get(conversationId);
        if (!known) throw weftError(Code.NotFound, "CONVERSATION_NOT_FOUND", "There is no such conversation.");
        const running = known.requestIds.find((id) => mesh.turns.get(id)?.status === "running") ?? "";
        return {
          conversation: { conversationId, title: known.title, runningRequestId: running },
          messages: known.requestIds.flatMap((id) => mesh.messages(id)),
        };
      },
      deleteConversation({ conversationId }) {
        mesh.calls.push("DeleteConversation");
        mesh.conversations.delete(conversationId);
        return {};
      },
      rateAnswer({ requestId, rating }) {
        const turn = mesh.turns.get(requestId);
        if (turn) turn.rating = rating;
        return {};
      },
    });
    router.service(KnowledgeService, {
      createDataset({ name }) {
        const datasetId = `ds_${mesh.datasets.size}`;
        mesh.datasets.set(datasetId, { name, status: "pending", documents: [], progress: 0 });
        return { datasetId, name, status: "pending" };
      },
      listDatasets() {
        return {
          datasets: [...mesh.datasets].map(([datasetId, one]) => ({
            datasetId,
            name: one.name || datasetId,
            status: one.status,
            documents: one.documents.length,
            chunks: one.documents.filter((document) => document.status === "indexed").length * 12,
          })),
        };
      },
      listDocuments({ datasetId }) {
        return { documents: mesh.datasets.get(datasetId)?.documents ?? [] };
      },
      deleteDocument({ datasetId, documentId }) {
        const dataset = mesh.datasets.get(datasetId);
        if (dataset) dataset.documents = dataset.documents.filter((one) => one.documentId !== documentId);
        return {};
      },
      deleteDataset({ datasetId }) {
        mesh.datasets.delete(datasetId);
        return {};
      },
      buildIndex({ datasetId }) {
        mesh.calls.push(`BuildIndex ${datasetId}`);
        const dataset = mesh.datasets.get(datasetId);
        if (dataset) Object.assign(dataset, { status: "indexing", progress: 0 });
        return { jobId: "job_1", datasetId, status: "pending" };
      },
      getStatus({ datasetId }) {
        const dataset = mesh.datasets.get(datasetId);
        if (!dataset) throw weftError(Code.NotFound, "DATASET_NOT_FOUND", "There is no such dataset.");
        dataset.progress = Math.min(1, dataset.progress + 0.5);
        if (dataset.progress === 1) dataset.status = "ready";
        if (dataset.progress === 1) for (const one of dataset.documents) one.status = "indexed";
        return { datasetId, status: dataset.status, progress: dataset.progress };
      },
    });
    router.service(ModelService, {
      listModels: () => ({ models: [{ modelId: "extractive", provider: "extractive", default: true }] }),
    });
  }

  private begin(request: StreamChatRequest): void {
    const question = request.messages.at(-1)?.content ?? "";
    const script = this.scripts.get(question) ?? this.answer;
    const turn = { request, script, passed: 0, events: [], stopped: false, status: "running", rating: "" };
    this.turns.set(request.requestId, turn);
    const known = this.conversations.get(request.conversationId) ?? { title: question, requestIds: [] };
    known.requestIds.push(request.requestId);
    this.conversations.set(request.conversationId, known);
  }

  private async *play(requestId: string, afterSeq: number, signal: AbortSignal) {
    const turn = this.turns.get(requestId);
    if (!turn) return;
    yield* turn.events.slice(afterSeq);
    while (turn.passed < turn.script.length && !signal.aborted) {
      const next = turn.script[turn.passed];
      turn.passed += 1;
      if (next === "wait") {
        await new Promise<void>((resolve) => {
          this.waiting.push(resolve);
          signal.addEventListener("abort", () => {
            turn.passed -= 1;
            resolve();
          });
        });
      }
      if (turn.stopped) {
        yield this.keep(turn, { type: "error", reason: "TURN_CANCELLED", message: "Stopped." });
        return;
      }
      if (next === "cut") throw new ConnectError("cut", Code.Unavailable);
      if (next instanceof ConnectError) throw next;
      if (next === undefined || next === "wait") continue;
      yield this.keep(turn, next);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  private keep(turn: FakeTurn, event: Event): Event {
    const numbered = { ...event, seq: turn.events.length + 1 };
    turn.events.push(numbered);
    if (event.type === "done") turn.status = "complete";
    if (event.type === "error") turn.status = turn.stopped ? "cancelled" : "failed";
    return numbered;
  }

  private messages(requestId: string): StoredMessage[] {
    const turn = this.turns.get(requestId);
    if (!turn) return [];
    const references = turn.events.flatMap(
      (event) => (event.references ?? []) as MessageInitShape<typeof ReferenceSchema>[],
    );
    const content = turn.events.map((event) => event.content ?? "").join("");
    const question = turn.request.messages.at(-1)?.content ?? "";
    return [
      create(StoredMessageSchema, {
        messageId: `${requestId}-q`,
        role: "user",
        content: question,
        requestId,
        status: "complete",
      }),
      create(StoredMessageSchema, {
        messageId: `${requestId}-a`,
        role: "assistant",
        content,
        requestId,
        status: turn.status,
        references,
        rating: turn.rating,
      }),
    ];
  }
}
