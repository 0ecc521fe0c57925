// The mesh, over gRPC-Web on the page's own origin.
import { Code, ConnectError, createClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { ChatService } from "../gen/weft/v1/chat_pb";
import { KnowledgeService } from "../gen/weft/v1/knowledge_pb";
import { ModelService } from "../gen/weft/v1/models_pb";
import { newId } from "./id";
import { accessToken, refuseToken } from "./token";
import { traceparent } from "./trace";

export type ChatClient = Client<typeof ChatService>;

function refused(error: unknown): boolean {
  return error instanceof ConnectError && error.code === Code.Unauthenticated;
}

/** Puts token, request id and trace on every call; a unary call is tried again once with a new token. */
const authorize: Interceptor = (next) => async (request) => {
  const requestId = request.header.get("x-request-id") ?? newId();
  request.header.set("x-request-id", requestId);
  request.header.set("traceparent", traceparent(requestId));
  const token = await accessToken();
  request.header.set("authorization", `Bearer ${token}`);
  try {
    const response = await next(request);
    if (!response.stream) return response;
    return { ...response, message: watch(response.message, token) };
  } catch (error) {
    if (!refused(error)) throw error;
    refuseToken(token);
    if (request.stream) throw error;
    request.header.set("authorization", `Bearer ${await accessToken()}`);
    return next(request);
  }
};

async function* watch<T>(messages: AsyncIterable<T>, token: string): AsyncIterable<T> {
  try {
    yield* messages;
  } catch (error) {
    if (refused(error)) refuseToken(token);
    throw error;
  }
}

const transport = createGrpcWebTransport({ baseUrl: location.origin, interceptors: [authorize] });

export const chat: ChatClient = createClient(ChatService, transport);
export const knowledge = createClient(KnowledgeService, transport);
export const models = createClient(ModelService, transport);
