/* What a warp computes together, and instructions that LLVM has not. */
#include <string.h>
#include "runtime.h"

enum { SHUFFLE = 2, PRODUCT, LOAD_MATRIX, STORE_MATRIX, REDUCE };

uint32_t rt_shuffle(uint32_t value, uint32_t by, int is_xor) {
    uint64_t own = value;
    uint64_t(*all)[16] = meet(SHUFFLE + 16 * is_xor, 1, &own);
    return all[(is_xor ? (current->id % LANES) ^ by : by) % LANES][0];
}

int32_t rt_reduce(int32_t value, int kind) {
    uint64_t own = (uint32_t)value;
    uint64_t(*all)[16] = meet(REDUCE + 16 * kind, 1, &own);
    int32_t result = (int32_t)all[0][0];
    for (int i = 1; i < LANES; i++) {
        int32_t other = (int32_t)all[i][0];
        result = kind == 0 ? (int32_t)((uint32_t)result + (uint32_t)other) : (kind == 1) == (other > result) ? other : result;
    }
    return result;
}

static float number(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static float half(uint32_t bits) {
    _Float16 value;
    uint16_t low = bits;
    memcpy(&value, &low, 2);
    return (float)value;
}

/* mma.sync, 16 × 8: kind 0 tf32 over 8, 1 bfloat16 and 2 float16 over 16. Summed in float64, rounded once. */
void rt_product(int kind, float *d, const float *c, const uint32_t *a, const uint32_t *b) {
    uint64_t own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    uint64_t(*all)[16] = meet(PRODUCT + 16 * kind, 6, own);
    int lane = current->id % LANES, depth = kind ? 16 : 8, half_depth = depth / 2, packed = kind ? 2 : 1;
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + (i >= 2 ? 8 : 0), column = 2 * (lane % 4) + i % 2;
        double sum = 0;
        for (int k = 0; k < depth; k++) {
            int place = k % half_depth / packed, upper = k >= half_depth;
            uint32_t left = all[row % 8 * 4 + place][(row >= 8) + 2 * upper], right = all[column * 4 + place][4 + upper];
            if (kind == 0) {
                sum += (double)number(left & 0xffffe000u) * number(right & 0xffffe000u);
                continue;
            }
            left = left >> 16 * (k % 2) & 0xffff, right = right >> 16 * (k % 2) & 0xffff;
            sum += kind == 1 ? (double)number(left << 16) * number(right << 16) : (double)half(left) * half(right);
        }
        d[i] = (float)(sum + c[i]);
    }
}

/* ldmatrix and stmatrix: 8 × 8 matrices of 16 bits, whose rows lie where lanes 8j … 8j + 7 say. */
static void matrices(uint32_t *values, uint64_t address, int count, int transposed, int operation) {
    uint64_t(*all)[16] = meet(operation + 16 * count + 256 * transposed, 1, &address);
    int lane = current->id % LANES;
    for (int j = 0; j < count; j++) {
        uint16_t pair[2] = {0xffff, 0xffff};
        if (operation == STORE_MATRIX) memcpy(pair, &values[j], 4);
        for (int i = 0; i < 2; i++) {
            int near = 2 * (lane % 4) + i, far = lane / 4, row = transposed ? near : far, column = transposed ? far : near;
            int offset = shared_offset(all[8 * j + row][0], 16, 16);
            if (offset < 0) continue;
            if (operation == STORE_MATRIX) {
                write_shared(offset + 2 * column, &pair[i], 2);
            } else {
                read_shared(offset + 2 * column, 2);
                memcpy(&pair[i], global_smem + offset + 2 * column, 2);
            }
        }
        if (operation == LOAD_MATRIX) memcpy(&values[j], pair, 4);
    }
}

void rt_load_matrix(uint32_t *values, uint64_t address, int count, int transposed) {
    matrices(values, address, count, transposed, LOAD_MATRIX);
}

void rt_store_matrix(uint32_t *values, uint64_t address, int count, int transposed) {
    matrices(values, address, count, transposed, STORE_MATRIX);
}

uint32_t rt_permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t nibble = selector >> 4 * i & 15, byte = both >> 8 * (nibble & 7) & 255;
        if (nibble & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * i;
    }
    return result;
}

uint32_t rt_tf32(uint32_t bits) { return (bits + 0x1000) & 0xffffe000u; }

/* Conversions that LLVM leaves to a library. A bfloat16 is returned in a float's register, in the low half: in C its own
   type is made by the very function that this one stands for, where the CPU has no instruction for it. */
float rt_to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    memcpy(&value, &bits, 4);
    return value;
}

_Float16 rt_to_half(float value) { return (_Float16)value; }
float rt_from_half(_Float16 value) { return (float)value; }
