/* Layer after layer: spike times of all neurons, and no potentials but of a few. */

static index_t arena[ARENA]; /* times that enter a layer and leave it, and its events */
static uint32_t counts[STEPS]; /* spikes of each step, of all layers */
static index_t begins[STEPS + 1];
static int32_t outputs[CLASSES]; /* potentials at the spike, or at the end */

static step_t *times_at(int32_t offset) { return (step_t *)arena + offset; }

/* The rows of weights that act on the neurons of a place, in the order of their steps,
   which begin at begins[step]. */
static void list_events(const struct layer *l, int32_t y, int32_t x, index_t *events) {
  const step_t *in = times_at(l->in);
  for (int32_t fill = 0; fill < 2; ++fill) { /* count, then put where they belong */
    if (fill) {
      index_t sum = 0;
      for (int32_t t = 0; t <= STEPS; ++t) {
        index_t here = begins[t];
        begins[t] = sum;
        sum = (index_t)(sum + here);
      }
    } else {
      for (int32_t t = 0; t <= STEPS; ++t) begins[t] = 0;
    }
    for (int32_t row = 0; row < l->size; ++row) {
      int32_t from_y = y * l->stride - l->top + row;
      if (from_y < 0 || from_y >= l->height) continue;
      for (int32_t column = 0; column < l->size; ++column) {
        int32_t from_x = x * l->stride - l->left + column;
        if (from_x < 0 || from_x >= l->width) continue;
        for (int32_t c = 0; c < l->inputs; ++c) {
          int32_t t = in[(from_y * l->width + from_x) * l->inputs + c];
          if (t >= STEPS) continue;
          if (fill) {
            events[begins[t]] = (index_t)((row * l->size + column) * l->inputs + c);
          }
          ++begins[t];
        }
      }
    }
    for (int32_t p = 0; p < l->pulses; ++p) {
      int32_t t = p * (int32_t)STEPS / l->pulses;
      if (fill) events[begins[t]] = (index_t)(l->size * l->size * l->inputs + p);
      ++begins[t];
    }
  }
  for (int32_t t = STEPS; t > 0; --t) begins[t] = begins[t - 1];
  begins[0] = 0;
}

/* Spike times of up to BLOCK neurons of a place, from `first` on. */
static void integrate(const struct layer *l, const index_t *events, int32_t first,
                      int32_t count, step_t *spikes) {
  int32_t v[BLOCK], silent = count, rows = l->size * l->size * l->inputs;
  int32_t last = l == layers + LAYERS - 1;
  for (int32_t o = 0; o < count; ++o) {
    v[o] = 0;
    spikes[o] = STEPS;
  }
  for (int32_t t = 0; t < STEPS && silent; ++t) {
    if (begins[t] == begins[t + 1]) continue;
    for (int32_t k = begins[t]; k < begins[t + 1]; ++k) {
      int32_t row = events[k], at = row * l->outputs + first;
      if (row < rows) {
        for (int32_t o = 0; o < count; ++o) v[o] += weight(l, at + o);
      } else {
        at -= rows * l->outputs;
        for (int32_t o = 0; o < count; ++o) v[o] += l->pulse[at + o];
      }
    }
    for (int32_t o = 0; o < count; ++o) {
      if (spikes[o] < STEPS || v[o] < l->threshold[first + o]) continue;
      spikes[o] = (step_t)t;
      --silent;
      ++counts[t];
      if (last) outputs[first + o] = v[o];
    }
  }
  for (int32_t o = 0; last && o < count; ++o) {
    if (spikes[o] == STEPS) outputs[first + o] = v[o];
  }
}

/* Takes spike times to the pooling neurons at (y, x), if there are any. */
static void pool(const struct layer *l, int32_t y, int32_t x, int32_t first,
                 int32_t count, const step_t *spikes) {
  int32_t height = l->out_height / l->pool, width = l->out_width / l->pool;
  int32_t to_y = y / l->pool, to_x = x / l->pool;
  if (to_y >= height || to_x >= width) return;
  step_t *out = times_at(l->out) + (to_y * width + to_x) * l->outputs + first;
  for (int32_t o = 0; o < count; ++o) {
    if (spikes[o] < out[o]) out[o] = spikes[o];
  }
}

static void respond(const struct layer *l) {
  int32_t height = l->out_height / l->pool, width = l->out_width / l->pool;
  int32_t size = height * width * l->outputs;
  step_t spikes[BLOCK];
  for (int32_t k = 0; k < size; ++k) times_at(l->out)[k] = STEPS;
  for (int32_t y = 0; y < l->out_height; ++y) {
    for (int32_t x = 0; x < l->out_width; ++x) {
      if (l->kernel) list_events(l, y, x, arena + l->events);
      for (int32_t first = 0; first < l->outputs; first += BLOCK) {
        int32_t count = l->outputs - first < BLOCK ? l->outputs - first : BLOCK;
        if (l->kernel) {
          integrate(l, arena + l->events, first, count, spikes);
          pool(l, y, x, first, count, spikes);
        } else { /* pooling alone */
          int32_t from = (y * l->out_width + x) * l->outputs + first;
          pool(l, y, x, first, count, times_at(l->in) + from);
        }
      }
    }
  }
  for (int32_t k = 0; l->pools && k < size; ++k) {
    if (times_at(l->out)[k] < STEPS) ++counts[times_at(l->out)[k]];
  }
}

void ds4nn_classify(const uint8_t *pixels, ds4nn_result *result) {
  const struct layer *last = layers + LAYERS - 1;
  const step_t *times = times_at(last->out);
  int32_t step = STEPS, best = -1;
  for (int32_t t = 0; t < STEPS; ++t) counts[t] = 0;
  for (int32_t k = 0; k < INPUTS; ++k) {
    times_at(layers[0].in)[k] = (step_t)step_of(pixels[k]);
  }
  for (const struct layer *l = layers; l <= last; ++l) respond(l);
  for (int32_t o = 0; o < CLASSES; ++o) {
    if (times[o] < step) step = times[o];
  }
  /* By the first spike, ties and silence alike by the potential, then by the index. */
  for (int32_t o = 0; o < CLASSES; ++o) {
    if (times[o] != step) continue;
    if (best < 0 || outputs[o] > outputs[best]) best = o;
  }
  result->label = best;
  result->step = step;
  result->spikes = 0;
  for (int32_t t = 0; t <= step && t < STEPS; ++t) result->spikes += counts[t];
}
