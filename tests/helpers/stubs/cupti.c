/* What libcupti does, as far as the collector calls it: answers that the test chooses, and records handed over in buffers, on a
 * thread of its own, as the library does. It complains of whatever the interface forbids. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define RECORD_BYTES 104 /* CUpti_ActivityUnifiedMemoryCounter3 */
#define MOST_RECORDS 100000
#define UNIFIED_MEMORY 25
#define INVALID_PARAMETER 1
#define MAX_LIMIT_REACHED 12
#define NEWEST_KIND 8

typedef struct {
    int32_t kind, counter;
    uint64_t value, start, end, address;
    uint32_t source, destination, stream, process, flags, pad;
} Record;
typedef struct {
    uint32_t scope, kind, device, enable;
} Config;
typedef void (*Requested)(uint8_t **, size_t *, size_t *);
typedef void (*Completed)(void *, uint32_t, uint8_t *, size_t, size_t);

static Requested requested;
static Completed completed;
static Record records[MOST_RECORDS];
static size_t count, dropped;
static int configured, enabled;
static uint32_t newest_kind = NEWEST_KIND;
static const char *complaint = "";
static struct {
    char call[64];
    int code;
} answers[16];

/* The test's side. */

void stub_answer(const char *call, int code) {
    for (int i = 0; i < 16; i++)
        if (!answers[i].call[0] || !strcmp(answers[i].call, call)) {
            strncpy(answers[i].call, call, sizeof answers[i].call - 1);
            answers[i].code = code;
            return;
        }
}

void stub_knows_kinds_to(uint32_t kind) { newest_kind = kind; }

void stub_drop(size_t n) { dropped = n; }

void stub_record(int kind, int counter, uint64_t value, uint64_t start, uint64_t end, uint32_t flags) {
    records[count++] = (Record){kind, counter, value, start, end, 0, 0, 0, 0, 0, flags, 0};
}

int stub_enabled(void) { return enabled; }

const char *stub_complaint(void) { return complaint; }

static void *deliver(void *unused) {
    for (size_t at = 0; at < count;) {
        uint8_t *buffer = NULL;
        size_t size = 0, most = 1, valid = 0;
        requested(&buffer, &size, &most);
        if (!buffer || (uintptr_t)buffer % 8 || size < RECORD_BYTES || most != 0)
            complaint = "a buffer that is missing, unaligned, too small or limited in records";
        for (; at < count && valid + RECORD_BYTES <= size; at++, valid += RECORD_BYTES) {
            memset(buffer + valid, 0xAB, RECORD_BYTES);
            memcpy(buffer + valid, &records[at], sizeof(Record));
        }
        completed(NULL, 0, buffer, size, valid);
    }
    count = 0;
    return unused;
}

void stub_deliver(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, deliver, NULL);
    pthread_join(thread, NULL);
}

/* The library's side. */

static int answer(const char *call) {
    for (int i = 0; i < 16; i++)
        if (!strcmp(answers[i].call, call)) return answers[i].code;
    return 0;
}

int cuptiGetResultString(int code, const char **name) {
    static char text[64];
    snprintf(text, sizeof text, "CUPTI_ERROR_%d", code);
    *name = text;
    return answer(__func__);
}

int cuptiGetTimestamp(uint64_t *now) {
    *now = 1000000;
    return answer(__func__);
}

int cuptiActivityRegisterCallbacks(Requested request, Completed complete) {
    if (!request || !complete) complaint = "no callbacks";
    requested = request, completed = complete;
    return answer(__func__);
}

int cuptiActivityConfigureUnifiedMemoryCounter(const Config *config, uint32_t n) {
    if (enabled) complaint = "configured after it was enabled";
    for (uint32_t i = 0; i < n; i++) {
        if (config[i].scope < 1 || config[i].scope > 2 || config[i].enable != 1) complaint = "a wrong configuration";
        if (config[i].kind < 1 || config[i].kind > newest_kind) return INVALID_PARAMETER;
    }
    configured = !answer(__func__);
    return answer(__func__);
}

int cuptiActivityEnable(int kind) {
    if (!requested || !configured || kind != UNIFIED_MEMORY) complaint = "enabled too early, or the wrong kind";
    enabled = !answer(__func__);
    return answer(__func__);
}

int cuptiActivityDisable(int kind) {
    if (kind != UNIFIED_MEMORY) complaint = "disabled the wrong kind";
    enabled = 0;
    return answer(__func__);
}

int cuptiActivityFlushPeriod(uint32_t milliseconds) {
    if (!milliseconds) complaint = "no flush period";
    return answer(__func__);
}

int cuptiActivityFlushAll(uint32_t forced) {
    if (forced != 1) complaint = "a flush that leaves records behind";
    stub_deliver();
    return answer(__func__);
}

int cuptiActivityGetNumDroppedRecords(void *context, uint32_t stream, size_t *n) {
    (void)context, (void)stream;
    *n = dropped;
    dropped = 0;
    return answer(__func__);
}

int cuptiActivityGetNextRecord(uint8_t *buffer, size_t valid, uint8_t **record) {
    uint8_t *next = *record ? *record + RECORD_BYTES : buffer;
    if (answer(__func__) && *record) return answer(__func__); /* the first record is read, what comes after it is not */
    if (next + RECORD_BYTES > buffer + valid) return MAX_LIMIT_REACHED;
    *record = next;
    return 0;
}
