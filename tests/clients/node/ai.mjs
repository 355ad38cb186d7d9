// The `ai` package with @ai-sdk/openai: its ordinary examples; base URL and key come from the environment. Prints one JSON object.
import { createOpenAI } from "@ai-sdk/openai";
import { embed, experimental_transcribe as transcribe, generateImage, generateObject, generateText, experimental_generateSpeech as speak, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const openai = createOpenAI({ baseURL: process.env.OPENAI_BASE_URL, apiKey: process.env.OPENAI_API_KEY });
const found = {};
const weather = tool({
  description: "The weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `sunny in ${city}`,
});

for (const [name, model] of [["responses", openai("gpt-4.1")], ["chat", openai.chat("gpt-4.1")]]) {
  found[`${name} text`] = (await generateText({ model, prompt: "tell me of toll roads", maxRetries: 0 })).text;
  const stream = streamText({ model, prompt: "tell me of bridges", maxRetries: 0 });
  let streamed = "";
  for await (const part of stream.textStream) streamed += part;
  found[`${name} stream`] = streamed;
  const called = await generateText({ model, prompt: "how is the weather in Paris", tools: { weather }, toolChoice: "required", stopWhen: stepCountIs(2), maxRetries: 0 });
  found[`${name} tools`] = called.steps[0].toolCalls.map((call) => call.toolName);
  found[`${name} object`] = (await generateObject({ model, schema: z.object({ name: z.string(), age: z.number() }), prompt: "Ann is 40", maxRetries: 0 })).object;
}
// a reasoning model on default options: each later step refers to the earlier items by their ids
const asked = { model: openai("gpt-5.4-mini"), prompt: process.env.WEATHER_LOOP, tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0 };
const loop = await generateText(asked);
found["loop by reference"] = loop.steps.length === 3 && loop.text.length > 0;
const streamedLoop = streamText(asked);
found["streamed loop"] = (await streamedLoop.text).length > 0 && (await streamedLoop.steps).length === 3;
const unstored = await generateText({ ...asked, providerOptions: { openai: { store: false } } });
found["unstored loop"] = unstored.steps.length === 3 && unstored.text.length > 0;
found.embedding = (await embed({ model: openai.embedding("text-embedding-3-small"), value: "a road with a toll" })).embedding.length;
found.image = (await generateImage({ model: openai.image("gpt-image-2"), prompt: "a toll booth", size: "1024x1024", maxRetries: 0 })).image.mediaType;
found.speech = (await speak({ model: openai.speech("gpt-4o-mini-tts"), text: "Mind the gap.", maxRetries: 0 })).audio.uint8Array.length > 0;
const wav = Buffer.from(process.env.WAV, "base64");
found.transcript = (await transcribe({ model: openai.transcription("gpt-4o-transcribe"), audio: wav, maxRetries: 0 })).text;
console.log(JSON.stringify(found));
