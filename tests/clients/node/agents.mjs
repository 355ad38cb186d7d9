// @openai/agents: loops over a tool on every way it keeps a conversation; base URL and key come from the environment. Prints one JSON object.
import { Agent, MemorySession, OpenAIChatCompletionsModel, OpenAIResponsesModel, run, setTracingDisabled, tool } from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";

setTracingDisabled(true);
const ASKED = process.env.WEATHER_LOOP;
const weather = tool({
  name: "weather",
  description: "The weather in a city",
  parameters: z.object({ city: z.string() }),
  execute: async ({ city }) => `sunny in ${city}`,
});
const agent = new Agent({ name: "default", model: "gpt-5.4-mini", instructions: "Be concise.", tools: [weather] });
const found = {};

const ran = await run(agent, ASKED);
found["default loop"] = ran.newItems.filter((item) => item.type === "tool_call_output_item").length === 2;
found["default output"] = ran.finalOutput;
found.previousResponseId = (await run(agent, "and Rome?", { previousResponseId: ran.lastResponseId })).finalOutput;
found.history = (await run(agent, [...ran.history, { role: "user", content: "and Rome?" }])).finalOutput;
const session = new MemorySession();
for (const text of [ASKED, "and Rome?"]) found[`session ${text.slice(0, 3)}`] = (await run(agent, text, { session })).finalOutput;
const streamed = await run(agent, ASKED, { stream: true });
let events = 0;
for await (const event of streamed) events += event ? 1 : 0;
found["streamed events"] = events;
found["streamed output"] = streamed.finalOutput;
const unstored = agent.clone({ modelSettings: { store: false, providerData: { include: ["reasoning.encrypted_content"] } } });
found.unstored = (await run(unstored, ASKED)).finalOutput;
const client = new OpenAI({ maxRetries: 0 });
for (const Model of [OpenAIChatCompletionsModel, OpenAIResponsesModel]) {
  found[Model.name] = (await run(agent.clone({ model: new Model(client, "gpt-4.1") }), ASKED)).finalOutput;
}
console.log(JSON.stringify(found));
