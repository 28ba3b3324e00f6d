// What the scripts in JavaScript share; see probe.py. BASE_URL, API_KEY, MODEL, ENGINE_STATS come from the environment.
import { crc32 } from 'node:zlib';

export const { BASE_URL, API_KEY, MODEL = 'chat', ENGINE_STATS } = process.env;
const VOLATILE = new Set(['id', 'created', 'created_at', 'system_fingerprint', 'request_id', '_request_id', 'item_id',
  'timestamp', 'responseId', 'completed_at']);
const checks = [];

export const check = (name, run) => {
  if (!name.startsWith('only_gateway_') || process.env.GATEWAY) checks.push([name, run]);
};

export function words(text, n) {
  const head = crc32(Buffer.from(text)).toString(16).padStart(8, '0');
  return Array.from({ length: n }, (_, i) => `w${head}-${i} `).join('');
}

export function plain(value) {
  if (Array.isArray(value)) return value.map(plain);
  if (value && typeof value === 'object') {
    return Object.fromEntries(Object.entries(value).filter(([k, v]) => !VOLATILE.has(k) && v !== undefined && v !== null)
      .map(([k, v]) => [k, plain(v)]));
  }
  return value;
}

export function expect(what, said = '') {
  if (!what) throw new Error(`expected: ${said}`);
}

export async function failure(call) {
  try {
    const got = await call();
    return { raised: null, got: JSON.stringify(got)?.slice(0, 200) };
  } catch (error) {
    return { raised: error.constructor.name, status: error.status ?? error.statusCode ?? null };
  }
}

export const stats = async () => (await fetch(ENGINE_STATS)).json();

export async function cancelledWithin(seconds, before) {
  const until = Date.now() + seconds * 1000;
  while (Date.now() < until) {
    if ((await stats()).cancelled > before) return true;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return false;
}

export async function main() {
  for (const [name, run] of checks) {
    let line;
    try {
      line = { check: name, ok: true, saw: plain(await run()) };
    } catch (error) {
      line = { check: name, ok: false, saw: `${error.constructor.name}: ${error.message}`.slice(0, 500) };
    }
    console.log(JSON.stringify(line));
  }
  process.exit(0);
}
