// What an app does with the official npm SDK: the same calls as tests/clients/calls.py, the same JSON printed.
import OpenAI, { toFile } from "openai";
import { VERSION } from "openai/version";

const KEYS = JSON.parse(process.env.KEYS);
const TEXTS = JSON.parse(process.env.TEXTS);
const MODEL = "gpt-4o-mini";
const client = (key = "rich") => new OpenAI({ baseURL: process.env.BASE_URL, apiKey: KEYS[key] });
const messages = (text) => [{ role: "user", content: text }];

async function all(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

async function failing(call) {
  try {
    await call();
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    return {
      class: error.constructor.name,
      status: error.status,
      code: error.code,
      type: error.type,
      body: error.error,
      requestId: error.requestID,
    };
  }
  return { class: "none" };
}

const SCENARIOS = {
  async chat(text) {
    const { data, response, request_id } = await client()
      .chat.completions.create({ model: MODEL, messages: messages(text), max_tokens: 30 })
      .withResponse();
    const headers = Object.fromEntries([...response.headers].filter(([name]) => name.startsWith("x-")));
    return { content: data.choices[0].message.content, usage: data.usage, headers, retries: 0, requestId: request_id };
  },
  async stream(text) {
    const { data, response } = await client()
      .chat.completions.create({ model: MODEL, messages: messages(text), max_tokens: 30, stream: true })
      .withResponse();
    const chunks = await all(data);
    return {
      content: chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""),
      usages: chunks.map((chunk) => chunk.usage).filter((usage) => usage != null),
      emptyChoices: chunks.filter((chunk) => !chunk.choices.length).length,
      held: response.headers.get("x-credits-held"),
      requestId: response.headers.get("x-request-id"),
    };
  },
  async stream_with_usage(text) {
    const chunks = await all(
      await client().chat.completions.create({
        model: MODEL,
        messages: messages(text),
        max_tokens: 30,
        stream: true,
        stream_options: { include_usage: true },
      }),
    );
    const last = chunks.at(-1);
    return {
      content: chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""),
      usages: chunks.map((chunk) => chunk.usage).filter((usage) => usage != null),
      lastHasUsage: last.usage != null && last.choices.length === 0,
    };
  },
  async tools(text) {
    const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
    const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
    const request = { model: MODEL, messages: messages(text), tools };
    const answer = await client().chat.completions.create({ ...request, tool_choice: "required" });
    const message = answer.choices[0].message;
    const call = message.tool_calls[0];
    const second = await client().chat.completions.create({
      ...request,
      messages: [...request.messages, message, { role: "tool", tool_call_id: call.id, content: "sunny" }],
      tool_choice: "none",
    });
    return {
      finish: answer.choices[0].finish_reason,
      name: call.function.name,
      arguments: Object.keys(JSON.parse(call.function.arguments)).sort(),
      then: second.choices[0].message.content,
    };
  },
  async two_choices(text) {
    const answer = await client().chat.completions.create({ model: MODEL, messages: messages(text), n: 2, max_tokens: 10 });
    return { indexes: answer.choices.map((choice) => choice.index), usage: answer.usage };
  },
  async embeddings(text) {
    const answer = await client().embeddings.create({ model: "text-embedding-3-small", input: [text, "second"] });
    const values = answer.data.flatMap((item) => item.embedding);
    return {
      lengths: answer.data.map((item) => item.embedding.length),
      types: [...new Set(values.map((value) => (typeof value === "number" ? "float" : typeof value)))],
      usage: answer.usage,
    };
  },
  async legacy(text) {
    const request = { model: "gpt-3.5-turbo-instruct", prompt: text, max_tokens: 7 };
    const answer = await client().completions.create(request);
    const streamed = await all(await client().completions.create({ ...request, stream: true }));
    return { text: answer.choices[0].text, usage: answer.usage, streamed: streamed.map((chunk) => chunk.choices[0]?.text ?? "").join("") };
  },
  async models() {
    const listed = await all(await client().models.list());
    return { listed: listed.map((model) => model.id), one: (await client().models.retrieve(MODEL)).id };
  },
  insufficient: (text) =>
    failing(() => client("poor").chat.completions.create({ model: MODEL, messages: messages(text), max_tokens: 10_000 })),
  unknown_key: (text) => failing(() => client("unknown").chat.completions.create({ model: MODEL, messages: messages(text) })),
  async unknown_model(text) {
    return {
      chat: await failing(() => client().chat.completions.create({ model: "gpt-imaginary", messages: messages(text) })),
      retrieve: await failing(() => client().models.retrieve("gpt-imaginary")),
      endpoint: await failing(() => client().fineTuning.jobs.list()),
    };
  },
  bad_request: (text) => failing(() => client().chat.completions.create({ model: MODEL, messages: messages(text), n: 0 })),
  async own_limit(text) {
    const limited = client("limited");
    const request = { model: MODEL, messages: messages(text), max_tokens: 3_000 };
    const first = await limited.chat.completions.create(request);
    const second = await limited.chat.completions.create(request);
    return { first: first.usage.completion_tokens, retries: 1, second: second.usage.completion_tokens };
  },
  upstream_limit: (text) => failing(() => client().chat.completions.create({ model: MODEL, messages: messages(text) })),
  async leave_stream(text) {
    const { data, response } = await client()
      .chat.completions.create({ model: MODEL, messages: messages(text), stream: true })
      .withResponse();
    const seen = [];
    for await (const chunk of data) {
      seen.push(chunk.choices[0].delta.content ?? "");
      if (seen.length === 4) break; // leaving the loop aborts the request
    }
    return { content: seen.join(""), requestId: response.headers.get("x-request-id") };
  },
  async two_threads(text) {
    const shared = client();
    const answers = await Promise.all(
      [...Array(8).keys()].map((number) =>
        shared.chat.completions.create({ model: MODEL, messages: messages(`${text} ${number}`), max_tokens: 5 }),
      ),
    );
    return { completionTokens: answers.map((answer) => answer.usage.completion_tokens) };
  },
  async stores(text) {
    const sdk = client();
    const data = Buffer.from("The refund policy: whales are refunded within 30 days.");
    const announced = { bytes: data.length, filename: "a.txt", mime_type: "text/plain", purpose: "assistants" };
    const upload = await sdk.uploads.create(announced);
    const parts = [];
    for (const piece of [data.subarray(0, 20), data.subarray(20)]) {
      parts.push((await sdk.uploads.parts.create(upload.id, { data: await toFile(piece, "part") })).id);
    }
    const { file } = await sdk.uploads.complete(upload.id, { part_ids: parts });
    const store = await sdk.vectorStores.create({ name: "docs", expires_after: { anchor: "last_active_at", days: 1 } });
    const batch = await sdk.vectorStores.fileBatches.createAndPoll(store.id, { file_ids: [file.id] }, { pollIntervalMs: 20 });
    const answer = await sdk.responses.create({
      model: MODEL,
      input: text,
      tools: [{ type: "file_search", vector_store_ids: [store.id] }],
      include: ["file_search_call.results"],
      max_tool_calls: 1,
      max_output_tokens: 30,
    });
    const results = answer.output.filter((item) => item.type === "file_search_call").flatMap((item) => item.results);
    const found = (await sdk.vectorStores.search(store.id, { query: "refund policy" })).data;
    return {
      file: file.id,
      completed: batch.file_counts.completed,
      results: results.map((row) => row.file_id),
      found: found.map((row) => row.file_id),
      bytes: (await sdk.vectorStores.retrieve(store.id)).usage_bytes,
      deleted: [(await sdk.vectorStores.delete(store.id)).deleted, (await sdk.files.delete(file.id)).deleted],
    };
  },
};

const found = {};
for (const [name, scenario] of Object.entries(SCENARIOS)) {
  try {
    found[name] = await scenario(TEXTS[name]);
  } catch (error) {
    found[name] = { raised: `${error.constructor.name}: ${error.message}` };
  }
}
process.stdout.write(JSON.stringify({ version: VERSION, found }));
