// One decode step of a GPT for one row, all layers in one launch: what `GPT.forward` computes.
//
// A step reads every weight once, and that is what takes its time: memory must never rest. A block
// runs on each multiprocessor, and after each part of a layer all blocks wait for each other; the
// weights do not wait. Each warp knows which it will multiply, to the end of the model, and keeps
// as many on their way as its part of shared memory, a ring of SLOTS, can hold. Weights are read
// as they are stored, all is summed in float32, and in the same order each time.
//
// Defined in front of this: Stored (a weight) with `number` and `rounded`, `activation`, N_LAYER,
// N_HEAD, HEAD_DIM, N_EMBD, MLP_DIM, VOCAB_SIZE, NORM_EPS, WARPS of a block and SLOTS of a warp.

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

constexpr int THREADS = 32 * WARPS, BUSY = WARPS - 1;  // warps that multiply; see `wait`
constexpr int EACH = 8;           // weights that a thread reads at once
constexpr int CHUNK = 32 * EACH;  // and a warp
constexpr int SIZE = 4;           // chunks of a piece, which is a part of a row
constexpr int WIDEST = MLP_DIM > N_EMBD ? MLP_DIM : N_EMBD;
constexpr int LANES = HEAD_DIM / EACH;  // threads that share a key
constexpr int GROUPS = THREADS / LANES;
constexpr int ATTENDED = HEAD_DIM + 1;  // a head's z, and the log of what its scores sum to

enum Kind { QKV, OUT, UP, DOWN, HEAD };
constexpr int N_LINEAR = 4 * N_LAYER + 1;

struct Linear { const Stored *weight, *bias, *gain, *gain_bias; };  // gain: of a norm before it

struct alignas(16) Eight { Stored v[EACH]; };
constexpr int LOADS = sizeof(Eight) / 16;

struct Shared {
    Eight ring[SLOTS][BUSY][SIZE][32];
    float x[WIDEST];  // what a part begins with, in the order of `place`
    Linear linears[N_LINEAR];
    float sums[WARPS];
    float attended[WARPS][ATTENDED + 1];
};
extern __shared__ __align__(16) unsigned char memory[];
__device__ Shared& shared() { return *reinterpret_cast<Shared*>(memory); }

__device__ int warp() { return threadIdx.x / 32; }
__device__ int lane() { return threadIdx.x % 32; }

// --- all blocks together -------------------------------------------------------------------------

// Until all blocks are here: `arrived` counts them, from 0 at the launch. Who says so must first
// wait for all that it has asked of memory: a thread that asks for no weights.
__device__ void wait(unsigned* arrived, unsigned& target) {
    target += gridDim.x;
    __syncthreads();
    if (threadIdx.x == THREADS - 1) {
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
        unsigned seen;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                         : "=r"(seen) : "l"(arrived) : "memory");
        } while (seen < target);
    }
    __syncthreads();
}

__device__ float warp_sum(float v) {
    for (int o = 16; o; o /= 2) v += __shfl_xor_sync(~0u, v, o);
    return v;
}

__device__ float block_sum(float v) {
    v = warp_sum(v);
    __syncthreads();
    if (lane() == 0) shared().sums[warp()] = v;
    __syncthreads();
    return warp_sum(lane() < WARPS ? shared().sums[lane()] : 0);
}

// --- matrices ------------------------------------------------------------------------------------

__device__ int n_in(int linear) {
    return linear % 4 == DOWN && linear < N_LINEAR - 1 ? MLP_DIM : N_EMBD;
}

// Rows of a matrix go round the blocks, those of a block round its warps: how many a block has.
__device__ int n_rows(int linear) {
    const int kind = linear == N_LINEAR - 1 ? HEAD : linear % 4;
    const int n_out =
        kind == QKV ? 3 * N_EMBD : kind == UP ? MLP_DIM : kind == HEAD ? VOCAB_SIZE : N_EMBD;
    return (n_out - 1 - int(blockIdx.x) + int(gridDim.x)) / int(gridDim.x);
}
__device__ int whole(int row) { return row * gridDim.x + blockIdx.x; }  // of all: this block's row

// The weights on their way to a warp: always the next SLOTS pieces.
struct Stream {
    int linear = -1, row = 0, rows = 0, column = 0, columns = 0, slot = 0;
    const Stored* from;

    // Ask for one more piece, in the place of the oldest; at the model's end for nothing.
    __device__ void fetch() {
        if (column >= columns) {
            row += BUSY;
            while (row >= rows && linear < N_LINEAR) {
                linear++;
                row = warp();
                rows = linear < N_LINEAR ? n_rows(linear) : 0;
            }
            columns = linear < N_LINEAR ? n_in(linear) : 0;
            column = 0;
            if (columns)
                from = shared().linears[linear].weight + (long long)whole(row) * columns;
        }
        const unsigned to = __cvta_generic_to_shared(&shared().ring[slot][warp()][0][lane()]);
        const int mine = column + lane() * EACH;
#pragma unroll
        for (int i = 0; i < SIZE; i++)
#pragma unroll
            for (int part = 0; part < LOADS; part++)
                if (mine + i * CHUNK < columns)
                    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                                 ::"r"(to + 512 * LOADS * i + 16 * part),
                                 "l"(from + mine + i * CHUNK + part * EACH / LOADS) : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
        column += SIZE * CHUNK;
        slot = slot + 1 == SLOTS ? 0 : slot + 1;
    }

    // The oldest piece, once it is there.
    __device__ const Eight (*oldest())[32] {
        asm volatile("cp.async.wait_group %0;" ::"n"(SLOTS - 1) : "memory");
        return shared().ring[slot][warp()];
    }
};

// Where x[k] is kept, so that threads that read eight in a row do not meet at a bank.
__device__ int place(int k) { return (k & 4 ? WIDEST / 2 : 0) + (k >> 3) * 4 + (k & 3); }

// W norm(x) + b of linear `index`, once all blocks have done with x: `x` gives an element of it,
// `write` takes a row and its sum. OUT and DOWN are added to the residual stream.
template <Kind KIND, class X, class Write>
__device__ void linear(int index, Stream& stream, const float* residual, unsigned* arrived,
                       unsigned& target, X x, Write write) {
    constexpr int N_IN = KIND == DOWN ? MLP_DIM : N_EMBD, MINE = (N_IN + THREADS - 1) / THREADS;
    constexpr bool NORMED = KIND == QKV || KIND == UP || KIND == HEAD;
    constexpr bool ADDED = KIND == OUT || KIND == DOWN;
    const int rows = n_rows(index), own = warp() + lane() * BUSY;
    const Linear of = shared().linears[index];
    // Asked for before the wait, but only looked at after it. A lane writes a row of its warp.
    Stored gain[MINE], gain_bias[MINE], bias;
    float before = 0;
    const bool biased = KIND != HEAD && own < rows;
    if (biased) bias = of.bias[whole(own)];
    if (biased && ADDED) before = __ldcg(residual + whole(own));
    if (NORMED)
#pragma unroll
        for (int i = 0, k = threadIdx.x; i < MINE; i++, k += THREADS)
            if (k < N_IN) gain[i] = of.gain[k], gain_bias[i] = of.gain_bias[k];
    wait(arrived, target);

    float mine[MINE], sum = 0, squares = 0;
#pragma unroll
    for (int i = 0, k = threadIdx.x; i < MINE; i++, k += THREADS)
        if (k < N_IN) sum += mine[i] = x(k);
    if (NORMED) {
        const float mean = block_sum(sum) / N_IN;
#pragma unroll
        for (int i = 0, k = threadIdx.x; i < MINE; i++, k += THREADS)
            if (k < N_IN) squares += (mine[i] - mean) * (mine[i] - mean);
        const float scale = rsqrtf(block_sum(squares) / N_IN + NORM_EPS);
#pragma unroll
        for (int i = 0, k = threadIdx.x; i < MINE; i++, k += THREADS)
            if (k < N_IN)
                mine[i] = (mine[i] - mean) * scale * number(gain[i]) + number(gain_bias[i]);
    }
#pragma unroll
    for (int i = 0, k = threadIdx.x; i < MINE; i++, k += THREADS)
        if (k < N_IN) shared().x[place(k)] = mine[i];
    __syncthreads();

#pragma unroll 1
    for (int row = warp(), i = 0; row < rows && warp() < BUSY; row += BUSY, i++) {
        float sum = 0, other = 0;
#pragma unroll 1
        for (int start = 0; start < N_IN; start += SIZE * CHUNK) {
            const Eight (*w)[32] = stream.oldest();
            const float* at = shared().x + start / 2 + lane() * 4;
#pragma unroll
            for (int i = 0; i < SIZE; i++, at += CHUNK / 2) {
                if (start + i * CHUNK + lane() * EACH >= N_IN) continue;
                const Eight eight = w[i][lane()];
                const float4 low = *reinterpret_cast<const float4*>(at);
                const float4 high = *reinterpret_cast<const float4*>(at + WIDEST / 2);
                sum += number(eight.v[0]) * low.x, other += number(eight.v[1]) * low.y;
                sum += number(eight.v[2]) * low.z, other += number(eight.v[3]) * low.w;
                sum += number(eight.v[4]) * high.x, other += number(eight.v[5]) * high.y;
                sum += number(eight.v[6]) * high.z, other += number(eight.v[7]) * high.w;
            }
            stream.fetch();
        }
        sum = warp_sum(sum + other);
        if (lane() == i % 32)
            write(whole(row), biased ? sum + (number(bias) + before) : sum);
    }
}

// --- attention -----------------------------------------------------------------------------------

__device__ Eight load(const Stored* from) {  // past the first cache: others' numbers are old there
    union { Eight eight; uint4 parts[LOADS]; } read;
    for (int i = 0; i < LOADS; i++)
        read.parts[i] = __ldcg(reinterpret_cast<const uint4*>(from) + i);
    return read.eight;
}

// What has been attended to so far: z is not yet divided by `total`, which is in units of e^most.
struct Attended {
    float most = -INFINITY, total = 0, z[EACH] = {};

    __device__ void add(float its_most, float its_total, const float* its_z) {
        if (its_total == 0) return;
        const float all = fmaxf(most, its_most);
        const float mine = __expf(most - all), its = __expf(its_most - all);
        total = total * mine + its_total * its;
        for (int i = 0; i < EACH; i++) z[i] = z[i] * mine + its_z[i] * its;
        most = all;
    }
};

// softmax(q k^T * scale) v over S keys in one pass (arXiv:1805.02867). The keys of a head are
// shared by `splits` blocks, each of which says what it would be with its own alone.
__device__ void attention(const float* q, const Stored* keys, const Stored* values, int S,
                          int capacity, float scale, int splits, float* attended,
                          unsigned* arrived, unsigned& target) {
    const int group = threadIdx.x / LANES, part = threadIdx.x % LANES * EACH;
    bool waited = false;
    for (int job = blockIdx.x; job < N_HEAD * splits; job += gridDim.x) {
        const int head = job / splits;
        float query[EACH];
        Attended seen;
#pragma unroll 1
        for (int start = job % splits; start < S; start += splits * GROUPS) {
            const int s = start + group * splits;
            const long long at = ((long long)head * capacity + min(s, S - 1)) * HEAD_DIM + part;
            Eight k = load(keys + at), v = load(values + at);  // all but the newest are there
            if (!waited) wait(arrived, target), waited = true;
            if (start == job % splits)
                for (int i = 0; i < EACH; i++)
                    query[i] = __ldcg(q + head * HEAD_DIM + part + i) * scale;
            if (s == S - 1) k = load(keys + at), v = load(values + at);
            float score = 0, value[EACH];
            for (int i = 0; i < EACH; i++)
                score += query[i] * number(k.v[i]), value[i] = number(v.v[i]);
            for (int o = LANES / 2; o; o /= 2) score += __shfl_xor_sync(~0u, score, o);
            if (s < S) seen.add(score, 1, value);
        }
        for (int o = LANES; o < 32; o *= 2) {
            const float most = __shfl_xor_sync(~0u, seen.most, o);
            const float total = __shfl_xor_sync(~0u, seen.total, o);
            float z[EACH];
            for (int i = 0; i < EACH; i++) z[i] = __shfl_xor_sync(~0u, seen.z[i], o);
            seen.add(most, total, z);
        }
        float* of_warp = shared().attended[warp()];
        if (lane() < LANES)
            for (int i = 0; i < EACH; i++) of_warp[part + i] = seen.z[i];
        if (lane() == 0) of_warp[HEAD_DIM] = seen.most, of_warp[HEAD_DIM + 1] = seen.total;
        __syncthreads();
        if (threadIdx.x < HEAD_DIM) {
            float most = -INFINITY, total = 0, z = 0;
            for (int w = 0; w < WARPS; w++) most = fmaxf(most, shared().attended[w][HEAD_DIM]);
            for (int w = 0; w < WARPS; w++) {
                const float* of = shared().attended[w];
                const float its = of[HEAD_DIM + 1] ? __expf(of[HEAD_DIM] - most) : 0;
                total += its * of[HEAD_DIM + 1];
                z += its * of[threadIdx.x];
            }
            float* out = attended + job * ATTENDED;
            out[threadIdx.x] = total ? z / total : 0;
            if (threadIdx.x == 0) out[HEAD_DIM] = total ? most + logf(total) : -INFINITY;
        }
        __syncthreads();
    }
    if (!waited) wait(arrived, target);
}

// --- the model -----------------------------------------------------------------------------------

// `space` has room for the residual stream, queries, neurons, and what heads attended to.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
decode(const Linear* linears, const float* scales, const Stored* token_vectors,
       const Stored* position_vectors, Stored* keys, Stored* values, float* logits, float* space,
       unsigned* arrived, const long long* id, int position, int capacity) {
    constexpr int C = N_EMBD;
    unsigned target = 0;
    const int splits =
        gridDim.x < 2 * N_HEAD ? 1 : gridDim.x / N_HEAD < 8 ? gridDim.x / N_HEAD : 8;
    float *x = space, *q = x + C, *hidden = q + C, *attended = hidden + MLP_DIM;
    for (int i = threadIdx.x; i < N_LINEAR; i += THREADS) shared().linears[i] = linears[i];
    __syncthreads();
    Stream stream;
    for (int slot = 0; slot < SLOTS && warp() < BUSY; slot++) stream.fetch();
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < C; i += gridDim.x * THREADS)
        x[i] = number(token_vectors[*id * C + i]) +
               number(position_vectors[(long long)position * C + i]);

    auto element = [&](int k) { return __ldcg(x + k); };
    auto add = [&](int row, float y) { x[row] = y; };
#pragma unroll 1
    for (int l = 0; l < N_LAYER; l++) {
        const long long of_layer = (long long)l * N_HEAD * capacity * HEAD_DIM;
        linear<QKV>(4 * l + QKV, stream, x, arrived, target, element, [&](int row, float y) {
            if (row < C) { q[row] = y; return; }
            const int at = row % C;
            const long long place = (long long)(at / HEAD_DIM) * capacity + position;
            (row < 2 * C ? keys : values)[of_layer + place * HEAD_DIM + at % HEAD_DIM] = rounded(y);
        });
        attention(q, keys + of_layer, values + of_layer, position + 1, capacity, scales[l], splits,
                  attended, arrived, target);
        linear<OUT>(4 * l + OUT, stream, x, arrived, target, [&](int k) {
            const float* of_head = attended + k / HEAD_DIM * splits * ATTENDED;
            float most = -INFINITY, total = 0, z = 0;
            for (int i = 0; i < splits; i++)
                most = fmaxf(most, __ldcg(of_head + i * ATTENDED + HEAD_DIM));
            for (int i = 0; i < splits; i++) {
                const float share = __expf(__ldcg(of_head + i * ATTENDED + HEAD_DIM) - most);
                total += share;
                z += share * __ldcg(of_head + i * ATTENDED + k % HEAD_DIM);
            }
            return z / total;
        }, add);
        linear<UP>(4 * l + UP, stream, x, arrived, target, element,
               [&](int row, float y) { hidden[row] = activation(y); });
        linear<DOWN>(4 * l + DOWN, stream, x, arrived, target,
                     [&](int k) { return __ldcg(hidden + k); }, add);
    }
    linear<HEAD>(N_LINEAR - 1, stream, x, arrived, target, element,
                 [&](int row, float y) { logits[row] = y; });
}
