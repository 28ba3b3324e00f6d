/* A cheap upstream for benchmarks: one thread, epoll, an OpenAI-like answer of 0.6 kB or a stream of events of 230 bytes.
 *
 *   cc -O2 -o mock mock.c && ./mock PORT        (0: any; the port is printed)
 *
 * It listens on the same port of 127.0.0.1 to 127.0.0.16, so that sixteen replicas have sixteen addresses.
 *
 * A body with "stream":true is answered with "max_tokens" events, a usage event and [DONE]. `@ttft_ms=20`, `@gap_ms=10` and
 * `@hold_s=60` (after the first event) in the body pace it; without them all is written at once. Linux only.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define IN_MAX (1 << 16)
#define FD_MAX 65536
#define ADDRESSES 16
typedef struct {
    int fd, used, streaming, left, n, gap_ms, hold_ms;
    long next_ms;
    int place; /* in `active` */
    char *in;
} conn;
static conn *conns[FD_MAX];
static conn *active[FD_MAX];
static int n_active;
static char plain[2048], event_[512], tail_[1024], head_[256];
static int plain_n, event_n, tail_n, head_n;

static long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000L + t.tv_nsec / 1000000;
}

static int chunk(char *to, const char *text) {
    return sprintf(to, "%zx\r\n%s\r\n", strlen(text), text);
}

static void build(void) {
    char body[1024], text[512];
    int n = sprintf(body, "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1700000000,"
        "\"model\":\"chat\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"");
    for (int i = 0; i < 8; i++) n += sprintf(body + n, "The quick brown fox jumps over the lazy dog again. ");
    n += sprintf(body + n, "\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":240,\"completion_tokens\":8,"
        "\"total_tokens\":248}}");
    plain_n = sprintf(plain, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", n, body);
    head_n = sprintf(head_, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
    sprintf(text, "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
        "\"model\":\"chat\",\"system_fingerprint\":\"fp_0123456789\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"word \"},"
        "\"logprobs\":null,\"finish_reason\":null}]}\n\n");
    event_n = chunk(event_, text);
    tail_n = chunk(tail_, "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
        "\"model\":\"chat\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n");
    tail_n += chunk(tail_ + tail_n, "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\","
        "\"created\":1700000000,\"model\":\"chat\",\"choices\":[],\"usage\":{\"prompt_tokens\":240,\"completion_tokens\":64,"
        "\"total_tokens\":304}}\n\n");
    tail_n += chunk(tail_ + tail_n, "data: [DONE]\n\n");
    tail_n += sprintf(tail_ + tail_n, "0\r\n\r\n");
}

static void drop(conn *c) {
    if (c->place >= 0) {
        active[c->place] = active[--n_active];
        active[c->place]->place = c->place;
    }
    conns[c->fd] = NULL;
    close(c->fd);
    free(c->in);
    free(c);
}

static int put(conn *c, const char *data, int n) { /* answers are small against a socket's buffer */
    while (n > 0) {
        ssize_t k = send(c->fd, data, n, MSG_NOSIGNAL);
        if (k < 0 && errno == EAGAIN) { usleep(50); continue; }
        if (k <= 0) return -1;
        data += k, n -= k;
    }
    return 0;
}

static int number(const char *in, const char *name, int otherwise) {
    const char *at = strstr(in, name);
    return at ? atoi(at + strlen(name)) : otherwise;
}

static int burst(conn *c) {
    static char all[1 << 18];
    int n = head_n;
    memcpy(all, head_, head_n);
    for (int i = 0; i < c->left && n + event_n + tail_n < (int)sizeof all; i++) memcpy(all + n, event_, event_n), n += event_n;
    memcpy(all + n, tail_, tail_n);
    return put(c, all, n + tail_n);
}

static int answer(conn *c, int get) {
    if (get) {
        const char *body = strstr(c->in, "/metrics ") ? "vllm:num_requests_running{model_name=\"chat\"} 0.0\n"
            "vllm:num_requests_waiting{model_name=\"chat\"} 0.0\n"
            : "{\"object\":\"list\",\"data\":[{\"id\":\"chat\",\"object\":\"model\",\"owned_by\":\"mock\"}],\"status\":\"ok\","
            "\"model_path\":\"chat\"}";
        char out[512];
        return put(c, out, sprintf(out, "HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n%s",
            *body == 'v' ? "text/plain" : "application/json", strlen(body), body));
    }
    if (!strstr(c->in, "\"stream\":true") && !strstr(c->in, "\"stream\": true")) return put(c, plain, plain_n);
    c->left = number(c->in, "\"max_tokens\":", 64);
    c->gap_ms = number(c->in, "@gap_ms=", 0);
    c->hold_ms = 1000 * number(c->in, "@hold_s=", 0);
    int ttft_ms = number(c->in, "@ttft_ms=", 0);
    if (!c->gap_ms && !c->hold_ms) return burst(c);
    if (put(c, head_, head_n)) return -1;
    c->streaming = 1, c->next_ms = now_ms() + ttft_ms;
    c->place = n_active, active[n_active++] = c;
    return 0;
}

static void tick(long now) {
    for (int i = n_active - 1; i >= 0; i--) {
        conn *c = active[i];
        if (now < c->next_ms) continue;
        if (c->left-- > 0) {
            if (put(c, event_, event_n)) { drop(c); continue; }
            c->next_ms += c->gap_ms;
            if (c->hold_ms) c->next_ms = now + c->hold_ms, c->hold_ms = 0;
        } else {
            int bad = put(c, tail_, tail_n);
            c->streaming = 0;
            active[i] = active[--n_active], active[i]->place = i, c->place = -1;
            if (bad) drop(c);
        }
    }
}

static void readable(conn *c) {
    for (;;) {
        ssize_t k = recv(c->fd, c->in + c->used, IN_MAX - 1 - c->used, 0);
        if (k < 0 && errno == EAGAIN) return;
        if (k <= 0) { drop(c); return; }
        c->used += k;
        c->in[c->used] = 0;
        char *end = strstr(c->in, "\r\n\r\n");
        while (end && !c->streaming) {
            char *length = strcasestr(c->in, "\r\ncontent-length:");
            int body = length && length < end ? atoi(length + 17) : 0, whole = end + 4 - c->in + body;
            if (c->used < whole) break;
            char kept = c->in[whole];
            c->in[whole] = 0;
            int bad = answer(c, c->in[0] == 'G');
            c->in[whole] = kept;
            if (bad) { drop(c); return; }
            memmove(c->in, c->in + whole, c->used - whole + 1);
            c->used -= whole;
            end = strstr(c->in, "\r\n\r\n");
        }
    }
}

int main(int argc, char **argv) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0)};
    struct rlimit limit;
    int one = 1, e = epoll_create1(0), first = -1, last = -1;
    struct epoll_event ev = {.events = EPOLLIN}, got[256];
    socklen_t size = sizeof a;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    getrlimit(RLIMIT_NOFILE, &limit), limit.rlim_cur = limit.rlim_max, setrlimit(RLIMIT_NOFILE, &limit);
    for (int i = 0; i < ADDRESSES; i++) {
        int s = last = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (first < 0) first = s;
        a.sin_addr.s_addr = htonl(INADDR_LOOPBACK + i);
        setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(s, (struct sockaddr *)&a, sizeof a) || listen(s, 8192)) return perror("listen"), 1;
        getsockname(s, (struct sockaddr *)&a, &size);
        ev.data.fd = s;
        epoll_ctl(e, EPOLL_CTL_ADD, s, &ev);
    }
    printf("{\"port\": %d}\n", ntohs(a.sin_port)), fflush(stdout);
    build();
    for (;;) {
        int n = epoll_wait(e, got, 256, n_active ? 2 : -1);
        for (int i = 0; i < n; i++) {
            int fd = got[i].data.fd, s = fd;
            if (fd >= first && fd <= last) {
                while ((fd = accept4(s, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (fd >= FD_MAX) { close(fd); continue; }
                    conn *c = calloc(1, sizeof *c);
                    c->fd = fd, c->place = -1, c->in = malloc(IN_MAX), conns[fd] = c;
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    ev.events = EPOLLIN, ev.data.fd = fd;
                    epoll_ctl(e, EPOLL_CTL_ADD, fd, &ev);
                }
            } else if (conns[fd]) readable(conns[fd]);
        }
        if (n_active) tick(now_ms());
    }
}
