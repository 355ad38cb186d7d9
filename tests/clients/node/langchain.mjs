// @langchain/openai on chat and Responses; base URL and key come from the environment. Prints one JSON object.
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { z } from "zod";

const weather = tool(async ({ city }) => `sunny in ${city}`, {
  name: "weather",
  description: "The weather in a city",
  schema: z.object({ city: z.string() }),
});
const configuration = { baseURL: process.env.OPENAI_BASE_URL };
const found = {};

async function loop(model, { streamed = false } = {}) {
  const bound = model.bindTools([weather]);
  const messages = [new HumanMessage(process.env.WEATHER_LOOP)];
  for (let step = 0; step < 4; step++) {
    let answer;
    if (streamed) for await (const part of await bound.stream(messages)) answer = answer ? answer.concat(part) : part;
    else answer = await bound.invoke(messages);
    messages.push(answer);
    if (!answer.tool_calls?.length) return step === 2 && answer.text.length > 0;
    for (const call of answer.tool_calls) messages.push(new ToolMessage({ content: "sunny", tool_call_id: call.id }));
  }
  return false;
}

for (const useResponsesApi of [false, true]) {
  const name = useResponsesApi ? "responses" : "chat";
  const fields = { model: "gpt-5.4-mini", maxRetries: 0, useResponsesApi, configuration };
  const model = new ChatOpenAI(fields);
  found[`${name} invoke`] = (await model.invoke("tell me of toll roads")).text;
  found[`${name} loop`] = await loop(model);
  found[`${name} streamed loop`] = await loop(model, { streamed: true });
  const Person = z.object({ name: z.string(), age: z.number() });
  found[`${name} structured`] = await new ChatOpenAI({ ...fields, model: "gpt-4.1" }).withStructuredOutput(Person).invoke("Ann is 40");
}
const model = new ChatOpenAI({ model: "gpt-5.4-mini", maxRetries: 0, useResponsesApi: true, configuration });
const first = await model.invoke("tell me of toll roads");
found.previous_response_id = (await model.invoke("and of bridges", { previous_response_id: first.response_metadata.id })).text;
found.zdr = await loop(new ChatOpenAI({ model: "gpt-5.4-mini", maxRetries: 0, useResponsesApi: true, zdrEnabled: true, configuration }));
found.embedding = (await new OpenAIEmbeddings({ model: "text-embedding-3-small", configuration }).embedQuery("a road with a toll")).length;
console.log(JSON.stringify(found));
