/* All layers advance together, a time step at a time, until an output fires. */

static potential_t potentials[WEIGHTED];
static uint8_t fired[BYTES(NEURONS)];     /* a bit a neuron, of pooling neurons, too */
static uint8_t spikes_in[BYTES(LARGEST)]; /* those of this step that enter a layer */
static uint8_t spikes_out[BYTES(LARGEST)];

static void clear(uint8_t *bits, int32_t count) {
  for (int32_t k = 0; k < BYTES(count); ++k) bits[k] = 0;
}

static int get(const uint8_t *bits, int32_t k) { return bits[k >> 3] >> (k & 7) & 1; }

static void set(uint8_t *bits, int32_t k) { bits[k >> 3] |= (uint8_t)(1 << (k & 7)); }

/* Adds the weights of a spike of input `i` to all neurons that hear it. */
static void arrive(const struct layer *l, int32_t i) {
  int32_t c = i % l->inputs, x = i / l->inputs % l->width;
  int32_t y = i / l->inputs / l->width;
  for (int32_t row = 0; row < l->size; ++row) {
    int32_t down = y + l->top - row, to_y = down / l->stride;
    if (down < 0 || down % l->stride || to_y >= l->out_height) continue;
    for (int32_t column = 0; column < l->size; ++column) {
      int32_t right = x + l->left - column, to_x = right / l->stride;
      if (right < 0 || right % l->stride || to_x >= l->out_width) continue;
      int32_t w = ((row * l->size + column) * l->inputs + c) * l->outputs;
      potential_t *v = potentials + l->first + (to_y * l->out_width + to_x) * l->outputs;
      for (int32_t o = 0; o < l->outputs; ++o) {
        v[o] = (potential_t)(v[o] + weight(l, w + o));
      }
    }
  }
}

/* The neuron fires, unless it has. Returns whether it does. */
static int fires(const struct layer *l, int32_t neuron) {
  if (get(fired, l->first + neuron)) return 0;
  set(fired, l->first + neuron);
  set(spikes_out, neuron);
  return 1;
}

/* The spikes of a step that leave a layer, for those that enter it; how many. */
static int32_t advance(const struct layer *l, int32_t step) {
  int32_t count = 0, any = 0, places = l->out_height * l->out_width;
  clear(spikes_out, places * l->outputs);
  for (int32_t k = 0; k < l->height * l->width * l->inputs; ++k) {
    if (!spikes_in[k >> 3]) {
      k |= 7; /* eight that are silent */
      continue;
    }
    if (!get(spikes_in, k)) continue;
    any = 1;
    if (l->kernel) {
      arrive(l, k);
      continue;
    }
    int32_t c = k % l->inputs, x = k / l->inputs % l->width / l->size;
    int32_t y = k / l->inputs / l->width / l->size;
    if (y < l->out_height && x < l->out_width) {
      count += fires(l, (y * l->out_width + x) * l->outputs + c);
    }
  }
  for (int32_t p = 0; p < l->pulses; ++p) {
    if (p * (int32_t)STEPS / l->pulses != step) continue;
    any = 1;
    for (int32_t n = 0; n < places * l->outputs; ++n) {
      potential_t *v = potentials + l->first + n;
      *v = (potential_t)(*v + l->pulse[p * l->outputs + n % l->outputs]);
    }
  }
  if (!any || !l->kernel) return count;
  for (int32_t n = 0; n < places * l->outputs; ++n) {
    if (potentials[l->first + n] >= l->threshold[n % l->outputs]) count += fires(l, n);
  }
  return count;
}

void ds4nn_classify(const uint8_t *pixels, ds4nn_result *result) {
  const struct layer *last = layers + LAYERS - 1;
  const potential_t *v = potentials + last->first;
  int32_t step, decided = 0, best = -1;
  for (int32_t k = 0; k < WEIGHTED; ++k) potentials[k] = 0;
  clear(fired, NEURONS);
  result->spikes = 0;
  for (step = 0; step < STEPS && !decided; ++step) {
    clear(spikes_in, INPUTS);
    for (int32_t k = 0; k < INPUTS; ++k) {
      if (pixels[k] && step_of(pixels[k]) == step) set(spikes_in, k);
    }
    for (const struct layer *l = layers; l <= last; ++l) {
      int32_t count = advance(l, step);
      for (int32_t k = 0; k < BYTES(l->out_height * l->out_width * l->outputs); ++k) {
        spikes_in[k] = spikes_out[k];
      }
      result->spikes += (uint32_t)count;
      if (l == last) decided = count > 0;
    }
  }
  /* By the first spike, ties and silence alike by the potential, then by the index. */
  for (int32_t o = 0; o < CLASSES; ++o) {
    if (decided && !get(spikes_out, o)) continue;
    if (best < 0 || v[o] > v[best]) best = o;
  }
  result->label = best;
  result->step = decided ? step - 1 : STEPS;
}
