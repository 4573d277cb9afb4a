/* Sends HTTP/1.1 requests at given times, whatever the server does meanwhile, and records what became of each.
 *
 *   open_loop HOST PORT CONNECTIONS GIVE_UP_MS GRACE_MS DUE PICKS REQUESTS RECORDS ANSWERS
 *
 * DUE: times as native u64, nanoseconds after the start, ascending. REQUESTS: each a native u32 length and its bytes.
 * PICKS: native u32; what is sent at DUE[i] is REQUESTS[PICKS[i]]. A request that finds every connection busy waits for
 * one, and its latency counts from DUE; after GIVE_UP_MS it is not sent any more.
 * RECORDS: one struct record for each time. ANSWERS: each different body with status 200, once: native u32 number in
 * REQUESTS of what it answers, u32 length, bytes. What an answer is worth, the caller judges. The output is when it
 * started: nanoseconds of the monotonic clock.
 *
 * One thread, no allocation for a request, two system calls for each: it shares a small machine with the server.
 * Answers must have a Content-Length.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_ANSWERS = 65536, SLOTS = 2 * MOST_ANSWERS, EVENTS = 256, READ_BYTES = 4096 };
static const uint32_t NO_ANSWER = UINT32_MAX;

struct record {
    uint64_t due_ns, sent_ns, done_ns; /* after the start; 0: it was not sent, not answered */
    uint32_t status;                   /* of HTTP; 0: the connection broke, or nothing came */
    uint32_t answer;                   /* index into ANSWERS, NO_ANSWER: status is not 200, or there was no room */
    uint64_t waited;                   /* 1: every connection was busy when it was due */
};

struct blob {
    char *bytes;
    size_t length;
};

struct answer {
    uint64_t hash;
    uint32_t request;
    struct blob body;
};

struct connection {
    int fd;          /* -1: closed, to be opened by its next request */
    int64_t request; /* the one under way, -1: none */
    struct blob unsent, in;
    size_t in_size;
};

static struct sockaddr_in server;
static struct blob *requests;
static uint32_t request_count, *picks;
static struct record *records;
static size_t record_count, next_due, next_unsent, finished;
static struct connection **idle;
static size_t idle_count;
static struct answer answers[MOST_ANSWERS];
static uint32_t answer_count, slots[SLOTS]; /* index of an answer + 1, by hash */
static int epoll;
static uint64_t start_ns, give_up_ns;

static void check(int is_well, const char *what)
{
    if (is_well)
        return;
    fprintf(stderr, "open_loop failed: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec - start_ns;
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    check(memory != NULL, "calloc");
    return memory;
}

static struct blob read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    check(file && !fseek(file, 0, SEEK_END), path);
    struct blob blob = {NULL, (size_t)ftell(file)};
    rewind(file);
    blob.bytes = allocate(blob.length, 1);
    check(fread(blob.bytes, 1, blob.length, file) == blob.length, path);
    fclose(file);
    return blob;
}

static void read_requests(const char *path)
{
    struct blob file = read_file(path);
    uint32_t length;
    for (size_t at = 0; at < file.length; at += sizeof length + length, request_count++)
        memcpy(&length, file.bytes + at, sizeof length);
    requests = allocate(request_count, sizeof *requests);
    char *at = file.bytes;
    for (uint32_t i = 0; i < request_count; at += length, i++) {
        memcpy(&length, at, sizeof length);
        at += sizeof length;
        requests[i] = (struct blob){at, length};
    }
}

static void open_connection(struct connection *connection, int flags)
{
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    check(connection->fd >= 0, "socket");
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    check(!connect(connection->fd, (struct sockaddr *)&server, sizeof server) || errno == EINPROGRESS, "connect");
    struct epoll_event event = {EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, {.ptr = connection}};
    check(!epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event), "epoll_ctl");
}

/* The index of an answer, which is kept if it is new and there is room. */
static uint32_t answer_of(const char *bytes, size_t length, uint32_t request)
{
    uint64_t hash = 0xcbf29ce484222325u + request; /* FNV-1a */
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (uint8_t)bytes[i]) * 0x100000001b3u;
    uint32_t slot = hash % SLOTS;
    for (; slots[slot]; slot = (slot + 1) % SLOTS) {
        struct answer *known = &answers[slots[slot] - 1];
        if (known->hash == hash && known->request == request && known->body.length == length)
            return slots[slot] - 1;
    }
    if (answer_count == MOST_ANSWERS)
        return NO_ANSWER;
    answers[answer_count] = (struct answer){hash, request, {allocate(length, 1), length}};
    memcpy(answers[answer_count].body.bytes, bytes, length);
    slots[slot] = ++answer_count;
    return answer_count - 1;
}

static void send_rest(struct connection *connection)
{
    while (connection->unsent.length) {
        const int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
        ssize_t sent = send(connection->fd, connection->unsent.bytes, connection->unsent.length, flags);
        if (sent < 0)
            return; /* full or not connected yet: an event follows; broken: reading tells */
        connection->unsent.bytes += sent;
        connection->unsent.length -= (size_t)sent;
    }
}

static void send_request(struct connection *connection, size_t index)
{
    if (connection->fd < 0)
        open_connection(connection, SOCK_NONBLOCK);
    connection->request = (int64_t)index;
    connection->unsent = requests[picks[index]];
    records[index].sent_ns = now_ns();
    send_rest(connection);
}

/* Everything that is due and has a connection goes out, the oldest first. */
static void send_due(void)
{
    for (;;) {
        uint64_t now = now_ns();
        for (; next_due < record_count && records[next_due].due_ns <= now; next_due++)
            records[next_due].waited = next_due - next_unsent >= idle_count;
        for (; next_unsent < next_due && records[next_unsent].waited; next_unsent++, finished++)
            if (now - records[next_unsent].due_ns <= give_up_ns)
                break;
        if (next_unsent == next_due || !idle_count)
            return;
        send_request(idle[--idle_count], next_unsent++);
    }
}

static void finish(struct connection *connection, uint32_t status, const char *body, size_t length)
{
    if (connection->request >= 0) {
        struct record *record = &records[connection->request];
        record->done_ns = now_ns();
        if ((record->status = status) == 200)
            record->answer = answer_of(body, length, picks[connection->request]);
        idle[idle_count++] = connection;
        finished++;
    }
    connection->request = -1;
    connection->unsent.length = connection->in.length = 0;
}

static void drop(struct connection *connection)
{
    close(connection->fd);
    connection->fd = -1;
    finish(connection, 0, NULL, 0);
}

/* Takes the answer if all of it is there. */
static void look_at_input(struct connection *connection)
{
    char *head_end = memmem(connection->in.bytes, connection->in.length, "\r\n\r\n", 4);
    if (!head_end)
        return;
    *head_end = 0;
    const char *length_field = strcasestr(connection->in.bytes, "\r\ncontent-length:");
    int closes = connection->unsent.length || strcasestr(connection->in.bytes, "\r\nconnection: close");
    errno = 0;
    check(length_field != NULL, connection->in.bytes);
    size_t body = strtoull(length_field + 17, NULL, 10), head = (size_t)(head_end - connection->in.bytes) + 4;
    *head_end = '\r';
    if (head + body >= connection->in_size) {
        connection->in_size = head + body + READ_BYTES;
        connection->in.bytes = realloc(connection->in.bytes, connection->in_size);
        check(connection->in.bytes != NULL, "realloc");
    }
    if (connection->in.length < head + body)
        return;
    finish(connection, (uint32_t)atoi(connection->in.bytes + 9), connection->in.bytes + head, body);
    if (closes)
        drop(connection);
}

static void on_event(struct connection *connection, int hung_up)
{
    send_rest(connection);
    while (connection->fd >= 0) {
        size_t room = connection->in_size - connection->in.length - 1; /* one byte ends strings */
        ssize_t got = recv(connection->fd, connection->in.bytes + connection->in.length, room, MSG_DONTWAIT);
        if (got <= 0) {
            if (got == 0 || (errno != EAGAIN && errno != ENOTCONN))
                drop(connection); /* also when a head is longer than its room */
            return;
        }
        connection->in.length += (size_t)got;
        look_at_input(connection);
        if ((size_t)got < room && !hung_up)
            return; /* what comes later is another event */
    }
}

static void run(uint64_t grace_ns)
{
    struct epoll_event events[EVENTS];
    uint64_t end_ns = (record_count ? records[record_count - 1].due_ns : 0) + grace_ns;
    start_ns = now_ns();
    for (send_due(); finished < record_count; send_due()) {
        uint64_t now = now_ns(), until = next_due < record_count ? records[next_due].due_ns : end_ns;
        if (now >= end_ns)
            return;
        uint64_t wait_ns = until > now ? until - now : 0;
        struct timespec timeout = {(time_t)(wait_ns / 1000000000u), (long)(wait_ns % 1000000000u)};
        int count = epoll_pwait2(epoll, events, EVENTS, &timeout, NULL);
        check(count >= 0 || errno == EINTR, "epoll_pwait2");
        for (int i = 0; i < count; i++) {
            on_event(events[i].data.ptr, (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0);
            send_due();
        }
    }
}

static void write_results(const char *record_path, const char *answer_path)
{
    FILE *file = fopen(record_path, "wb");
    check(file && fwrite(records, sizeof *records, record_count, file) == record_count && !fclose(file), record_path);
    check((file = fopen(answer_path, "wb")) != NULL, answer_path);
    for (uint32_t i = 0; i < answer_count; i++) {
        uint32_t head[2] = {answers[i].request, (uint32_t)answers[i].body.length};
        fwrite(head, sizeof head, 1, file);
        fwrite(answers[i].body.bytes, 1, answers[i].body.length, file);
    }
    check(!ferror(file) && !fclose(file), answer_path);
}

int main(int count, char **words)
{
    check(count == 11, "HOST PORT CONNECTIONS GIVE_UP_MS GRACE_MS DUE PICKS REQUESTS RECORDS ANSWERS");
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(words[2]))};
    check(inet_aton(words[1], &server.sin_addr), words[1]);
    struct blob due = read_file(words[6]), picked = read_file(words[7]);
    read_requests(words[8]);
    picks = (uint32_t *)(void *)picked.bytes;
    record_count = due.length / sizeof(uint64_t);
    records = allocate(record_count, sizeof *records);
    check(picked.length == record_count * sizeof *picks, words[7]);
    for (size_t i = 0; i < record_count; i++) {
        memcpy(&records[i].due_ns, due.bytes + i * sizeof(uint64_t), sizeof(uint64_t));
        records[i].answer = NO_ANSWER;
        check(picks[i] < request_count, words[7]);
    }
    prctl(PR_SET_TIMERSLACK, 1);         /* else waits end up to 50 us late */
    setpriority(PRIO_PROCESS, 0, -10); /* as if it had a machine of its own; who may not, sees it in the lag */
    epoll = epoll_create1(EPOLL_CLOEXEC);
    size_t connection_count = strtoull(words[3], NULL, 10);
    struct connection *connections = allocate(connection_count, sizeof *connections);
    idle = allocate(connection_count, sizeof *idle);
    for (; idle_count < connection_count; idle_count++) {
        struct connection *connection = idle[idle_count] = &connections[idle_count];
        *connection = (struct connection){.request = -1, .in.bytes = allocate(READ_BYTES, 1), .in_size = READ_BYTES};
        open_connection(connection, 0);
    }
    give_up_ns = strtoull(words[4], NULL, 10) * 1000000u;
    run(strtoull(words[5], NULL, 10) * 1000000u);
    write_results(words[9], words[10]);
    printf("%" PRIu64 "\n", start_ns);
}
