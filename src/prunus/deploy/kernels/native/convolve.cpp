// Convolutions as products: a panel is what some output positions see of the (padded) input.
#include <cstring>
#include <vector>

#include "call.hpp"

namespace prunus {
namespace {

constexpr int kTogether = 2;
constexpr int64_t kMostPacked = 1 << 20;  // floats of panels at a time
constexpr int64_t kKept = 16 << 20;

thread_local Scratch padded_memory, panel_memory, sum_memory;

// `count` tokens from `token` on are outputs that lie one after another from `output` on (in the plane of channel 0).
struct Run {
    int32_t token, count;
    int64_t output;
};

// Tokens that see neighbours: `count` from `token` on, the first of them at `source` in the padded plane of channel 0.
struct Piece {
    int32_t token, count;
    int64_t source;
};

struct Place {
    int64_t source;             // flat: of the first token, in the padded plane of channel 0
    std::vector<Piece> pieces;  // gathered: where the tokens come from
    std::vector<Run> runs;
    int32_t width;
};

struct Plan {
    Convolution c;
    int64_t height, width, plane, oh, ow;  // of the padded input, of the output
    bool flat;
    std::vector<int32_t> table;   // flat: the same
    std::vector<int64_t> offset;  // of column k in the padded input
    std::vector<Place> places;
};

// Tokens are positions of the padded plane, row after row, also where a row has no output any more: neighbours are then
// neighbours in memory for every column, and the padded input itself is all panels, with a table for the columns.
bool flat_pays(const Convolution &c, const Plan &p) {
    return c.stride_h == 1 && c.stride_w == 1 && (p.width - p.ow) * 10 <= p.width * 3 &&
           c.channels * p.plane < INT32_MAX;
}

void place_flat(Plan &p, const Level &l) {
    const int64_t last = (p.oh - 1) * p.width + p.ow;
    for (int64_t n = 0; n < p.c.images; n++)
        for (int64_t at = 0; at < last;) {
            int32_t size = l.widest;
            while (size > l.lanes && size / 2 >= last - at) size /= 2;
            Place place{n * p.c.channels * p.plane + at, {}, {}, size};
            for (int64_t t = 0; t < size && at + t < last;) {
                const int64_t row = (at + t) / p.width, col = (at + t) % p.width;
                const int64_t count = std::min(size - t, p.width - col);
                const int64_t good = std::min(count, p.ow - col);
                if (good > 0) place.runs.push_back({int32_t(t), int32_t(good), (n * p.oh + row) * p.ow + col});
                t += count;
            }
            if (!place.runs.empty()) p.places.push_back(std::move(place));
            at += size;
        }
}

void place_gathered(Plan &p, const Level &l) {
    const int64_t each = p.oh * p.ow, total = p.c.images * each;
    for (int64_t at = 0; at < total;) {
        int32_t size = l.widest;
        while (size > l.lanes && size / 2 >= total - at) size /= 2;
        Place place{0, {}, {}, size};
        for (int64_t t = 0; t < size && at + t < total; t++) {
            const int64_t n = (at + t) / each, y = (at + t) % each / p.ow, x = (at + t) % p.ow;
            const int64_t from = n * p.c.channels * p.plane + y * p.c.stride_h * p.width + x * p.c.stride_w;
            if (!place.pieces.empty() && place.pieces.back().source + place.pieces.back().count == from)
                place.pieces.back().count++;
            else
                place.pieces.push_back({int32_t(t), 1, from});
            if (place.runs.empty() || (at + t) % each == 0) place.runs.push_back({int32_t(t), 0, at + t});
            place.runs.back().count++;
        }
        p.places.push_back(std::move(place));
        at += size;
    }
}

Plan planned(const Convolution &c, const Level &l) {
    Plan p;
    p.c = c;
    p.height = c.height + 2 * c.pad_h;
    p.width = c.width + 2 * c.pad_w;
    p.plane = p.height * p.width;
    p.oh = c.out_h();
    p.ow = c.out_w();
    p.flat = flat_pays(c, p);
    p.offset.reserve(size_t(c.channels * c.kernel_h * c.kernel_w));
    for (int64_t i = 0; i < c.channels; i++)
        for (int64_t y = 0; y < c.kernel_h; y++)
            for (int64_t x = 0; x < c.kernel_w; x++)
                p.offset.push_back(i * p.plane + y * c.dilation_h * p.width + x * c.dilation_w);
    if (p.flat) {
        p.table.assign(p.offset.begin(), p.offset.end());
        place_flat(p, l);
    } else {
        place_gathered(p, l);
    }
    return p;
}

void fill(const Plan &p, const Place &place, const float *padded, float *panel) {
    const Piece &end = place.pieces.back();
    const int32_t there = end.token + end.count;
    const size_t columns = p.offset.size();
    for (size_t k = 0; k < columns; k++, panel += place.width) {
        const float *from = padded + p.offset[k];
        if (end.token + 1 == there || k + 1 == columns) {
            for (const Piece &one : place.pieces)
                for (int32_t t = 0; t < one.count; t++) panel[one.token + t] = from[one.source + t];
        } else {
            // By eights: what is too much is written over by the next piece, or by the next column.
            for (const Piece &one : place.pieces)
                for (int32_t t = 0; t < one.count; t += 8)
                    std::memcpy(panel + one.token + t, from + one.source + t, 8 * sizeof(float));
        }
        for (int32_t t = there; t < place.width; t++) panel[t] = 0;
    }
}

}  // namespace

void convolve(const Matrix &m, const void *x, int32_t half, const Convolution &c, const Epilogue &e, void *y,
              int threads) {
    const Level &l = level();
    if (c.images == 0 || m.rows == 0 || c.out_h() <= 0 || c.out_w() <= 0) return;
    Plan p = planned(c, l);
    const int64_t planes = c.images * c.channels, blocks = (m.rows + kRows - 1) / kRows;
    // A flat panel may read on behind the last plane.
    float *padded = padded_memory.floats(planes * p.plane + kWidest);
    std::memset(padded + planes * p.plane, 0, size_t(kWidest) * sizeof(float));
    std::atomic<int32_t> special{0};
    each(threads, planes, [&](int64_t i) {
        float *to = padded + i * p.plane;
        const char *from = static_cast<const char *>(x) + i * c.height * c.width * (half ? 2 : 4);
        int32_t odd = 0;
        if (c.pad_h == 0 && c.pad_w == 0) {
            odd = l.widen(from, half, c.height * c.width, to);
        } else {
            std::memset(to, 0, size_t(p.plane) * sizeof(float));
            for (int64_t row = 0; row < c.height; row++)
                odd |= l.widen(from + row * c.width * (half ? 2 : 4), half, c.width,
                               to + (row + c.pad_h) * p.width + c.pad_w);
        }
        if (odd) special.store(1, std::memory_order_relaxed);
    });
    const int64_t largest = p.flat ? 0 : int64_t(p.offset.size()) * l.widest;
    const int64_t most = std::max<int64_t>(kMostPacked / (largest + 1), int64_t(threads) * kTogether);
    const int64_t at_once = p.flat ? int64_t(p.places.size()) : most;
    const int64_t out_plane = p.oh * p.ow;
    for (size_t from = 0; from < p.places.size(); from += size_t(at_once)) {
        const int64_t count = std::min<int64_t>(at_once, int64_t(p.places.size() - from));
        std::vector<Panel> panels(static_cast<size_t>(count));
        float *memory = p.flat ? nullptr : panel_memory.floats(count * largest);
        for (int64_t i = 0; i < count; i++) {
            const Place &place = p.places[from + i];
            if (p.flat) panels[i] = {padded + place.source, p.table.data(), place.width, special};
            else panels[i] = {memory + i * largest, nullptr, place.width, special};
        }
        if (!p.flat)
            each(threads, count, [&](int64_t i) { fill(p, p.places[from + i], padded, memory + i * largest); });
        const int64_t groups = (count + kTogether - 1) / kTogether;
        const int64_t tall = blocks_together(blocks, groups, threads), stacks = (blocks + tall - 1) / tall;
        each(threads, stacks * groups, [&](int64_t task) {
            const int64_t block = task % stacks * tall, end = std::min(blocks, block + tall);
            const int64_t group = task / stacks * kTogether;
            const int32_t n = int32_t(std::min<int64_t>(kTogether, count - group));
            float *tile = sum_memory.floats(kTogether * tall * kRows * kWidest);
            l.multiply(m, block, end, panels.data() + group, n, tile);
            for (int32_t i = 0; i < n; i++)
                for (int64_t b = block; b < end; b++, tile += kRows * kWidest) {
                    const Place &place = p.places[from + group + i];
                    const int rows = int(std::min<int64_t>(kRows, m.rows - b * kRows));
                    l.finish(tile, rows, place.width, e.bias ? e.bias + b * kRows : nullptr, e.activation);
                    for (const Run &run : place.runs) {
                        const int64_t image = run.output / out_plane;
                        const int64_t first = (image * m.rows + b * kRows) * out_plane + run.output % out_plane;
                        for (int r = 0; r < rows; r++)
                            l.narrow(tile + r * kWidest + run.token, run.count, e.half,
                                     static_cast<char *>(y) + (first + r * out_plane) * (e.half ? 2 : 4));
                    }
                }
        });
    }
    padded_memory.trim(kKept);
    panel_memory.trim(kKept);
}

}  // namespace prunus
