/* Threads, warps, barriers, and the order in which they run. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "runtime.h"

enum { READY, IN_WARP, AT_BARRIER, DONE };
enum { STACK = 1 << 18, SHOWN = 4, LENGTH = 200 };

Thread *current;
int64_t program;
uint32_t epoch, warp_epoch[MOST_THREADS / LANES];
int counts[KINDS];
char messages[KINDS][SHOWN][LENGTH];

static Thread pool[MOST_THREADS];
static int threads, living, arrived, grid[3], place[3];
static void *scheduler, *arguments;
static void (*entry)(void *);
static uint64_t given[MOST_THREADS / LANES][2][LANES][16];
static int operation_of[MOST_THREADS / LANES][2][LANES], met[MOST_THREADS / LANES];

void found(int kind, const char *format, ...) {
    if (counts[kind] < SHOWN) {
        va_list rest;
        va_start(rest, format);
        int n = snprintf(messages[kind][counts[kind]], LENGTH, "program %ld, thread %d: ", (long)program, current ? current->id : -1);
        vsnprintf(messages[kind][counts[kind]] + n, LENGTH - n, format, rest);
        va_end(rest);
    }
    counts[kind]++;
}

void switch_stacks(void **from, void *to);
__asm__(".globl switch_stacks\n"
        "switch_stacks:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static void wait_as(int state) {
    current->state = state;
    switch_stacks(&current->stack_pointer, scheduler);
}

static void first_frame(void) {
    entry(arguments);
    wait_as(DONE);
    abort();
}

static void begin_thread(int id) {
    Thread *t = &pool[id];
    if (!t->stack) t->stack = mmap(0, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    t->id = id, t->state = READY, t->turn = 0, t->copied = t->groups = t->open = 0;
    uint64_t *top = (uint64_t *)(t->stack + STACK - 64);
    *--top = 0;
    *--top = (uint64_t)first_frame;
    top -= 6;
    memset(top, 0, 48);
    t->stack_pointer = top;
}

uint64_t (*meet(int operation, int count, const uint64_t *values))[16] {
    int warp = current->id / LANES, lane = current->id % LANES, side = current->turn++ & 1;
    memcpy(given[warp][side][lane], values, 8 * count);
    operation_of[warp][side][lane] = operation;
    if (++met[warp] < LANES) {
        wait_as(IN_WARP);
        return given[warp][side];
    }
    met[warp] = 0;
    warp_epoch[warp]++;
    for (int i = 0; i < LANES; i++) {
        pool[warp * LANES + i].state = READY;
        if (operation_of[warp][side][i] != operation) found(DIVERGENT, "lane %d is at another collective of its warp", i);
    }
    return given[warp][side];
}

void rt_warp_sync(void) {
    uint64_t nothing = 0;
    meet(1, 1, &nothing);
}

static void open_barrier(void) {
    arrived = 0;
    epoch++;
    for (int i = 0; i < threads; i++) {
        if (pool[i].state == AT_BARRIER) pool[i].state = READY;
        warp_epoch[i / LANES]++;
    }
}

void rt_barrier(void) {
    if (++arrived == living) open_barrier();
    else wait_as(AT_BARRIER);
}

int rt_thread(void) { return current->id; }
int rt_program(int axis) { return place[axis]; }
int rt_programs(int axis) { return grid[axis]; }

static uint32_t state;
static uint32_t drawn(uint32_t below) {
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    return state % below;
}

/* A permutation of 0 … size - 1: as it is, reversed, or drawn. */
static void put_in_order(int *order, int size, int kind) {
    for (int i = 0; i < size; i++) order[i] = kind == 1 ? size - 1 - i : i;
    for (int i = size - 1; kind == 2 && i > 0; i--) {
        int j = drawn(i + 1), other = order[i];
        order[i] = order[j], order[j] = other;
    }
}

static int run_warps(int orders[3]) {
    int warps[MOST_THREADS / LANES], lanes[LANES], moved = 0;
    put_in_order(warps, threads / LANES, orders[1]);
    for (int w = 0; w < threads / LANES; w++)
        for (int again = 1; again;) {
            again = 0;
            put_in_order(lanes, LANES, orders[2]);
            for (int l = 0; l < LANES; l++) {
                Thread *t = &pool[warps[w] * LANES + lanes[l]];
                if (t->state != READY) continue;
                again = moved = 1;
                current = t;
                switch_stacks(&scheduler, t->stack_pointer);
                if (t->state != DONE) continue;
                living--;
                if (arrived) {
                    found(DIVERGENT, "it ends while others wait at a barrier");
                    if (arrived == living) open_barrier();
                }
            }
        }
    return moved;
}

/* orders: of programs, of warps, of lanes; 0 forwards, 1 backwards, 2 drawn. */
int rt_run(void (*kernel)(void *), void *values, int x, int y, int z, int count, int shared, int programs, int warps, int lanes, uint32_t seed) {
    if (count > MOST_THREADS || shared > MOST_SHARED) return 1;
    entry = kernel, arguments = values, threads = count, shared_size = shared, state = seed * 2654435761u | 1;
    grid[0] = x, grid[1] = y, grid[2] = z;
    memset(counts, 0, sizeof counts);
    int total = x * y * z, *order = malloc(sizeof(int) * total), orders[3] = {programs, warps, lanes};
    put_in_order(order, total, programs);
    for (int i = 0; i < total; i++) {
        program = order[i];
        place[0] = program % x, place[1] = program / x % y, place[2] = program / x / y;
        epoch = 1, arrived = 0, living = threads;
        for (int t = 0; t < threads; t++) begin_thread(t);
        for (int w = 0; w < threads / LANES; w++) warp_epoch[w] = 1, met[w] = 0;
        forget_shared();
        while (run_warps(orders)) {}
        current = 0;
        if (living) {
            found(DEADLOCK, "%d threads wait for ever", living);
            break;
        }
    }
    free(order);
    return 0;
}
