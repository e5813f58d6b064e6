/* A GPU's program on one core: what its threads share. Threads are fibers; at a collective one waits for the others. */
#pragma once
#include <stdint.h>

enum { BOUNDS, MISALIGNED, UNWRITTEN, SHARED_RACE, WARP_RACE, RACE_IN_PROGRAM, RACE_BETWEEN_PROGRAMS, DIVERGENT, DEADLOCK, KINDS };
enum { MOST_THREADS = 1024, LANES = 32, MOST_SHARED = 256 * 1024, MOST_COPIES = 1024, MOST_GROUPS = 64 };

typedef struct {
    uint64_t to, from;
    int bytes, present;
} Copy;

typedef struct {
    void *stack_pointer;
    char *stack;
    int id, state;
    uint32_t turn; /* of its warp's collectives */
    Copy copies[MOST_COPIES]; /* that cp.async has begun */
    int copied, groups, open, group[MOST_GROUPS];
} Thread;

extern Thread *current;
extern int64_t program;      /* the linear index of the one that runs */
extern uint32_t epoch;       /* barriers of the program so far, from 1 */
extern uint32_t warp_epoch[MOST_THREADS / LANES];
extern int shared_size;
extern char global_smem[MOST_SHARED];

void found(int kind, const char *format, ...);
void forget_shared(void);
/* All lanes of a warp give values under an operation's name; what all gave is returned. */
uint64_t (*meet(int operation, int count, const uint64_t *values))[16];
int shared_offset(uint64_t address, int bytes, int alignment);
void read_shared(int offset, int bytes);
void write_shared(int offset, const void *values, int bytes);
