//! Checks and rewrites types by their spelling: which references can be sent, and which lifetimes a
//! type has.

use proc_macro2::Span;
use syn::{
    GenericParam, Generics, Lifetime, LifetimeParam, Type, TypeFnPtr, TypeImplTrait, TypeNever,
    TypePath, TypeReference,
    visit::{self, Visit},
    visit_mut::{self, VisitMut},
};

use crate::check::Refusals;

/// Returns `T` and `true` for `&T`, because the referenced value is what is sent. Any other type is
/// returned as it is, with `false`.
pub(crate) fn behind_reference(ty: &Type) -> (&Type, bool) {
    match ty {
        Type::Reference(reference) => (&reference.elem, true),
        Type::Group(group) => behind_reference(&group.elem),
        Type::Paren(paren) => behind_reference(&paren.elem),
        _ => (ty, false),
    }
}

pub(crate) fn check_param(ty: &Type, refusals: &mut Refusals) {
    let (inner, is_reference) = behind_reference(ty);
    if is_reference {
        check_reference(ty, refusals);
    }
    CheckParam { refusals }.visit_type(inner);
}

/// Checks the reference of a parameter `&T`, without its `T`.
fn check_reference(ty: &Type, refusals: &mut Refusals) {
    match ty {
        Type::Group(group) => check_reference(&group.elem, refusals),
        Type::Paren(paren) => check_reference(&paren.elem, refusals),
        Type::Reference(reference) => check_mut_and_static(reference, refusals),
        _ => {}
    }
}

fn check_mut_and_static(reference: &TypeReference, refusals: &mut Refusals) {
    if let Some(token) = &reference.mutability {
        refusals.add(
            token.span,
            "a task function cannot take `&mut`: it works on a copy, in another process; take the value and \
             return it",
        );
    }
    if let Some(lifetime) =
        reference.lifetime.as_ref().filter(|lifetime| lifetime.ident == "static")
    {
        refusals.add(
            lifetime.span(),
            "a task function cannot take a `'static` reference: the worker decodes the value and drops it \
             after the call; remove `'static`, or take an owned type",
        );
    }
}

struct CheckParam<'a> {
    refusals: &'a mut Refusals,
}

impl<'ast> Visit<'ast> for CheckParam<'_> {
    fn visit_type_reference(&mut self, reference: &'ast TypeReference) {
        check_mut_and_static(reference, self.refusals);
        if reference.mutability.is_none() && !is_borrowed_when_decoded(&reference.elem) {
            let message = "a reference inside another type cannot be decoded, unless it is `&str`, `&[u8]` \
                           or `&Path`: use an owned type here, or take a reference to the whole argument";
            self.refusals.add_spanned(reference, message);
        }
        visit::visit_type_reference(self, reference);
    }

    fn visit_type_impl_trait(&mut self, ty: &'ast TypeImplTrait) {
        self.refusals.add(
            ty.impl_token.span,
            "a task function cannot take `impl Trait`: the worker must know the type; use a concrete type",
        );
    }

    fn visit_type_path(&mut self, ty: &'ast TypePath) {
        check_self(ty, self.refusals);
        visit::visit_type_path(self, ty);
    }
}

/// Whether a reference to this type can be decoded inside another type: serde decodes `&str`,
/// `&[u8]` and `&Path` in place.
fn is_borrowed_when_decoded(ty: &Type) -> bool {
    match ty {
        Type::Path(path) => path
            .path
            .segments
            .last()
            .is_some_and(|last| last.ident == "str" || last.ident == "Path"),
        Type::Slice(_) => is_byte_slice(ty),
        Type::Group(group) => is_borrowed_when_decoded(&group.elem),
        Type::Paren(paren) => is_borrowed_when_decoded(&paren.elem),
        _ => false,
    }
}

pub(crate) fn is_byte_slice(ty: &Type) -> bool {
    matches!(ty, Type::Slice(slice) if matches!(&*slice.elem, Type::Path(path) if path.path.is_ident("u8")))
}

fn check_self(ty: &TypePath, refusals: &mut Refusals) {
    if let Some(first) = ty.path.segments.first().filter(|first| first.ident == "Self") {
        refusals.add(
            first.ident.span(),
            "the worker calls a task function from outside of the `impl` block, where `Self` means nothing: \
             write the type's name, or put `#[task]` on the whole block",
        );
    }
}

pub(crate) fn check_output(ty: &Type, refusals: &mut Refusals) {
    CheckOutput { refusals }.visit_type(ty);
}

struct CheckOutput<'a> {
    refusals: &'a mut Refusals,
}

impl<'ast> Visit<'ast> for CheckOutput<'_> {
    fn visit_type_reference(&mut self, reference: &'ast TypeReference) {
        let message = "the result of a task function comes from another process and cannot be a reference: \
                       return an owned type, such as `String` for `&str`";
        self.refusals.add_spanned(reference, message);
    }

    fn visit_lifetime(&mut self, lifetime: &'ast Lifetime) {
        if lifetime.ident != "static" {
            let message = "the result of a task function comes from another process and cannot borrow: return an \
                           owned type";
            self.refusals.add(lifetime.span(), message);
        }
    }

    fn visit_type_impl_trait(&mut self, ty: &'ast TypeImplTrait) {
        self.refusals.add(
            ty.impl_token.span,
            "a task function cannot return `impl Trait`: the caller must know the type to decode it; use a \
             concrete type, such as `Vec<T>` for an iterator",
        );
    }

    fn visit_type_never(&mut self, ty: &'ast TypeNever) {
        self.refusals.add(
            ty.bang_token.span,
            "a task function must return: the future yields its result; remove `-> !`",
        );
    }

    fn visit_type_path(&mut self, ty: &'ast TypePath) {
        check_self(ty, self.refusals);
        visit::visit_type_path(self, ty);
    }

    // Skip function pointers: they declare their own lifetimes, and borrow nothing.
    fn visit_type_fn_ptr(&mut self, _: &'ast TypeFnPtr) {}
}

/// Gives each elided lifetime a name and adds it to `generics`. The generated `task` returns a type
/// that mentions these lifetimes, so they need names.
pub(crate) fn name_lifetimes(ty: &mut Type, generics: &mut Generics) {
    NameLifetimes { generics }.visit_type_mut(ty);
}

struct NameLifetimes<'a> {
    generics: &'a mut Generics,
}

impl NameLifetimes<'_> {
    fn fresh(&mut self, span: Span) -> Lifetime {
        let lifetime = Lifetime::new(&format!("'__a{}", self.generics.params.len()), span);
        self.generics.params.push(GenericParam::Lifetime(LifetimeParam::new(lifetime.clone())));
        lifetime
    }
}

impl VisitMut for NameLifetimes<'_> {
    fn visit_type_reference_mut(&mut self, reference: &mut TypeReference) {
        if reference.lifetime.is_none() {
            reference.lifetime = Some(self.fresh(reference.and_token.span));
        }
        visit_mut::visit_type_reference_mut(self, reference);
    }

    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        if lifetime.ident == "_" {
            *lifetime = self.fresh(lifetime.span());
        }
    }

    fn visit_type_fn_ptr_mut(&mut self, _: &mut TypeFnPtr) {}
}

/// Replaces each lifetime except `'static` by `'_`, so that the compiler infers it. This is for
/// types in expressions, where the function's own lifetimes are not in scope.
pub(crate) fn infer_lifetimes(ty: &mut Type) {
    struct InferLifetimes;
    impl VisitMut for InferLifetimes {
        fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
            if lifetime.ident != "static" {
                *lifetime = Lifetime::new("'_", lifetime.span());
            }
        }
        fn visit_type_fn_ptr_mut(&mut self, _: &mut TypeFnPtr) {}
    }
    InferLifetimes.visit_type_mut(ty);
}

/// Whether a type, spelled like this, has a lifetime other than `'static` in it.
pub(crate) fn has_lifetimes(ty: &Type) -> bool {
    struct Find(bool);
    impl<'ast> Visit<'ast> for Find {
        fn visit_lifetime(&mut self, lifetime: &'ast Lifetime) {
            self.0 |= lifetime.ident != "static";
        }

        fn visit_type_reference(&mut self, reference: &'ast TypeReference) {
            self.0 |= reference.lifetime.is_none();
            visit::visit_type_reference(self, reference);
        }
    }
    let mut find = Find(false);
    find.visit_type(ty);
    find.0
}
