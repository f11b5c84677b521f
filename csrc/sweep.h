// What the sweeps forward and backward share: scratch memory, tasks, and what comes before and after a step.
//
// A step multiplies the previous outputs with packed panels of weight_hh and applies the cell's function to the tile
// while it is in the cache. Tasks own rows of the batch for the whole sequence, or a direction: no barrier in a step.
// Letters as in layer.h.

// Blocks of scratch memory that a thread keeps for its next call: what malloc gave back to the system at the end of one
// call would come back page by page in the next, at several times the cost of a layer.
struct Scratch {
  static constexpr int SLOTS = 8;
  static constexpr size_t PAGE = size_t(1) << 21, LARGE = 2 * PAGE;
#ifdef __SANITIZE_ADDRESS__  // the sanitizer must see where a block ends, and memory that nobody has written
  static constexpr size_t MOST = 0;
#else
  static constexpr size_t MOST = size_t(64) << 20;  // bytes kept in all
#endif
  void* block[SLOTS] = {};
  size_t size[SLOTS] = {};
  size_t kept = 0;

  ~Scratch() {
    for (void* b : block) free(b);
  }
  // The smallest block of at least `bytes`, which becomes its size; those of large pages are for who needs them.
  void* take(size_t& bytes) {
    const size_t most = bytes * 4 > LARGE ? bytes * 4 : LARGE;
    int best = -1;
    for (int i = 0; i < SLOTS; i++)
      if (block[i] && size[i] >= bytes && size[i] <= most && (best < 0 || size[i] < size[best])) best = i;
    if (best >= 0) {
      bytes = size[best];
      return remove(best);
    }
    void* made = fresh_block(bytes);
    if (!made) abort();  // nothing sensible is left to do; torch's own allocator has been asked for far more
    return made;
  }
  // Smaller blocks make room for a larger one.
  void give(void* b, size_t bytes) {
    if (bytes > MOST) return free(b);
    for (;;) {
      int least = -1, empty = -1;
      for (int i = 0; i < SLOTS; i++)
        if (!block[i]) empty = i;
        else if (least < 0 || size[i] < size[least]) least = i;
      if (empty >= 0 && kept + bytes <= MOST) {
        block[empty] = b;
        size[empty] = bytes;
        kept += bytes;
        return;
      }
      if (size[least] >= bytes) return free(b);
      free(remove(least));
    }
  }

 private:
  void* remove(int i) {
    void* found = block[i];
    block[i] = nullptr;
    kept -= size[i];
    return found;
  }
  static void* fresh_block(size_t& bytes) {
    if (bytes < LARGE) return aligned_alloc(64, bytes);
    bytes = (bytes + PAGE - 1) / PAGE * PAGE;
    void* made = aligned_alloc(PAGE, bytes);
#ifdef __linux__
    if (made) madvise(made, bytes, MADV_HUGEPAGE);
#endif
    return made;
  }
};

static thread_local Scratch scratch;

// Scratch memory, as aligned as the longest vector.
template <class T>
struct Buffer {
  size_t bytes;
  T* data;
  explicit Buffer(int64_t n) : bytes(((size_t)(n > 0 ? n : 1) * sizeof(T) + 63) / 64 * 64), data((T*)scratch.take(bytes)) {}
  ~Buffer() { scratch.give((void*)data, bytes); }
  Buffer(const Buffer&) = delete;
  operator T*() const { return data; }
};

template <class F>
static void in_parallel(const Parallel& parallel, int64_t tasks, const F& f) {
  if (tasks == 1 || parallel.threads == 1) {
    for (int64_t i = 0; i < tasks; i++) f(i);
  } else {
    parallel.run(tasks, [](void* data, int64_t i) { (*(const F*)data)(i); }, (void*)&f);
  }
}

// Rows [begin, end) of the batch that a task owns.
struct Chunk {
  int64_t begin, end;
  int64_t rows(const Shape& s, int64_t t) const {
    int64_t n = s.rows(t);
    return n <= begin ? 0 : (n < end ? n : end) - begin;
  }
};

// Cut the batch into chunks of about equal work: rows are sorted by length, so the first chunks have fewer.
static Chunk chunk(const Shape& s, int64_t i, int64_t of) {
  if (!s.running) return {s.B * i / of, s.B * (i + 1) / of};
  int64_t total = s.total(), seen = 0, bounds[2] = {0, s.B};
  for (int64_t r = 0, next = 0; r < s.B; r++) {
    for (; next < of && seen * of >= total * next; next++) {
      if (next == i) bounds[0] = r;
      if (next == i + 1) bounds[1] = r;
    }
    seen += s.length(r);
  }
  return {bounds[0], bounds[1]};
}

template <class Cell, class V, class Stored = typename V::type>
struct Sweep {
  using T = typename V::type;
  static constexpr int G = Cell::gates, S = Cell::states, columns = Cell::columns;
  static constexpr bool narrow = !__is_same(Stored, T);

  const Shape& s;
  const Direction<T, Stored>& d;
  int64_t H, out;

  Sweep(const Shape& s, const Direction<T, Stored>& d) : s(s), d(d), H(s.H), out(s.P ? s.P : s.H) {}

  int64_t time(int64_t i) const { return d.reverse ? s.T - 1 - i : i; }
  int64_t before(int64_t t) const { return d.reverse ? t + 1 : t - 1; }
  int64_t after(int64_t t) const { return d.reverse ? t - 1 : t + 1; }
  bool begins(int64_t t, int64_t r) const { return d.reverse ? t + 1 == s.T || r >= s.rows(t + 1) : t == 0; }
  bool ends(int64_t t, int64_t r) const { return d.reverse ? t == 0 : t + 1 == s.T || r >= s.rows(t + 1); }

  TORCHRNN_INLINE const Stored* output_before(int64_t t, int64_t r) const {
    return begins(t, r) ? d.initial[0] + r * out : d.y.at(before(t), r);
  }
  // State k > 0 before step t: in training at its place in the sequence, otherwise where states are kept step by step.
  TORCHRNN_INLINE const T* state_before(int k, int64_t t, int64_t r) const {
    if (!d.sequence[k]) return running(k) + r * H;
    return begins(t, r) ? initial(k) + r * H : d.sequence[k] + s.index(before(t), r) * H;
  }
  T* running(int k) const {
    if constexpr (narrow) return d.running[k];
    else return d.final[k];
  }
  const T* initial(int k) const {
    if constexpr (narrow) return d.running[k];  // which is written in inference only
    else return d.initial[k];
  }
  template <class From, class To>
  static void copy(const From* from, To* to, int64_t count) {
    for (int64_t j = 0; j < count; j += V::lanes) {
      int lanes = count - j < V::lanes ? (int)(count - j) : V::lanes;
      store(load<V>(from + j, lanes), to + j, lanes);
    }
  }
  // The initial states of some rows to where they are kept; that of the output, where the cell reads it.
  void widen(int64_t begin, int64_t end) const {
    for (int k = Cell::reads[0] && !d.w_hr ? 0 : 1; k < S; k++)
      copy(d.initial[k] + begin * H, d.running[k] + begin * H, (end - begin) * H);
  }

  // Gates whose h-parts stand side by side among the columns, from gate g on.
  static constexpr int run_of(int g) {
    int next = g + 1;
    while (next < G && Cell::h_column[next] == Cell::h_column[g] + next - g) next++;
    return next - g;
  }
};

template <class V>
static int64_t row_chunks(const Shape& s, int directions, const Parallel& parallel, int64_t work) {
  int64_t most = parallel.threads / directions;
  if (work < 200000 || most < 1) return 1;
  return most < s.B ? most : s.B;
}
