// What the levels (level.cpp, compiled once per instruction set) and the rest (call.cpp) tell each other.
// Nothing here may be an inline function of the standard library: the linker would keep one copy of it, perhaps the
// one that was compiled for instructions this machine lacks.
#pragma once
#include <cstdint>

namespace prunus {

constexpr int kRows = 64;     // rows of a row block
constexpr int kWidest = 64;   // tokens of the widest panel
constexpr int kAbreast = 8;   // rows that lie side by side in lanes
constexpr int kSlack = 16;    // values that may be read beyond the last one

enum Layout : int32_t { kLists = 0, kBits = 1, kBlocks = 2, kLanes = 3 };
enum Activation : int32_t { kNone = 0, kRelu = 1, kGelu = 2 };

// A packed matrix [rows, cols]. Row blocks of 64 rows hold tiles of `tile` columns, tiles hold rows:
//   lists   entry e has its column within the tile in index[e]; counts[block, tile, row] entries a row
//   bits    index[block, tile, row] has a bit per column of the tile; values of the bits that are set follow each other
//   blocks  as lists, an entry being `block` values of consecutive rows; counts[block, tile, row / block]
//   lanes   the fullest rows of a tile first, eight side by side: entry j of each, then entry j + 1 of each, as many as
//           the fullest of the eight has. The others end with zeros at the first column that they lack.
//           counts[block, tile, 0] has the entries of each row in this order, counts[block, tile, 1] which row it is
// starts[block, tile] is the first entry of a tile, the last one of all closes the table.
struct Matrix {
    const void *values;
    const uint8_t *index;
    const uint8_t *counts;
    const int64_t *starts;
    int64_t rows, cols;
    int32_t tile;
    int32_t layout;
    int32_t block;
    int32_t wide;  // indices and counts take two bytes
    int32_t half;  // values are bfloat16
};

// Inputs of `width` tokens: column k of the matrix meets data[table[k] + token], or data[k * width + token].
struct Panel {
    const float *data;
    const int32_t *table;
    int32_t width;
    int32_t special;  // holds NaN or infinity
};

// `count` sums from `token` on are outputs that lie one after another, from `output` on where row 0 is.
struct Run {
    int32_t token, count;
    int64_t output;
};

struct Level {
    const char *name;
    int32_t lanes;
    int32_t widest;        // tokens of a panel, and sums from one row of a tile to the next
    int32_t block_widest;  // the same where weights are in blocks
    // out[panel][row][widest] = the row blocks from `block` to `end` times each panel
    void (*multiply)(const Matrix &, int64_t block, int64_t end, const Panel *, int32_t panels, float *out);
    // out[row of the block] = the block times one vector; x is readable and zero up to the end of the last tile
    void (*single)(const Matrix &, int64_t block, const float *x, int32_t special, float *out);
    // panel[k][width] of x[tokens][cols] for k in [from, to); tokens that are missing become zero; whether one is not
    // finite
    int32_t (*turn)(const void *x, int32_t half, int64_t stride, int32_t tokens, int64_t from, int64_t to, int32_t width,
                    float *panel);
    // to[i] = from[i] as float32; whether one is not finite
    int32_t (*widen)(const void *from, int32_t half, int64_t count, float *to);
    // to[height][pad + width] of x[height][width], with zeros on the left; whether one is not finite
    int32_t (*pad)(const void *x, int32_t half, int64_t height, int64_t width, int64_t pad, float *to);
    // tile[row][wide] += bias[row], then the activation
    void (*finish)(float *tile, int32_t wide, int32_t rows, int32_t width, const float *bias, int32_t activation);
    // y[token][row] = tile[row][token]
    void (*store)(const float *tile, int32_t wide, int32_t rows, int32_t tokens, int32_t half, int64_t stride, void *y);
    void (*narrow)(const float *from, int64_t count, int32_t half, void *to);
    // y[row * stride + run.output ..] = tile[row][run.token ..]
    void (*place)(const float *tile, int32_t wide, int32_t rows, const Run *runs, int32_t count, int32_t half,
                  int64_t stride, void *y);
};

const Level &level_baseline();
#ifdef PRUNUS_X86
const Level &level_v3();
const Level &level_v4();
#endif

}  // namespace prunus
