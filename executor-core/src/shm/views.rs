//! Views of shared arrays as those of the crate `ndarray`.

use bytemuck::Pod;
use ndarray::{ArrayView, ArrayViewMut, Dimension, ShapeError, StrideShape};

use super::{ArrayReadGuard, ArrayWriteGuard};

impl<T: Pod> ArrayReadGuard<'_, T> {
    /// The elements in this shape, in place. With the feature `ndarray`.
    ///
    /// # Errors
    /// If the shape has more elements.
    pub fn view<D: Dimension>(
        &self,
        shape: impl Into<StrideShape<D>>,
    ) -> Result<ArrayView<'_, T, D>, ShapeError> {
        ArrayView::from_shape(shape, self)
    }
}

impl<T: Pod> ArrayWriteGuard<'_, T> {
    /// The elements in this shape, in place. With the feature `ndarray`.
    ///
    /// # Errors
    /// If the shape has more elements.
    pub fn view<D: Dimension>(
        &self,
        shape: impl Into<StrideShape<D>>,
    ) -> Result<ArrayView<'_, T, D>, ShapeError> {
        ArrayView::from_shape(shape, self)
    }

    /// The elements in this shape, in place, to be written. With the feature `ndarray`.
    ///
    /// # Errors
    /// If the shape has more elements.
    pub fn view_mut<D: Dimension>(
        &mut self,
        shape: impl Into<StrideShape<D>>,
    ) -> Result<ArrayViewMut<'_, T, D>, ShapeError> {
        ArrayViewMut::from_shape(shape, self)
    }
}
